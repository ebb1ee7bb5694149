"""A first recipe for somebody's own pairs: model, batch, length and schedule, with the reasons."""

from collections.abc import Callable
import copy
import dataclasses
import math

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.siglip import Siglip
from clip_jax.pretrained.model_bundle import Description
from clip_jax.pretrained.tuning_view import tuning_view
from clip_jax.study import hyperparameters
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.hog import Hog
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine

FEW = 100_000  # Pairs below which a transformer from scratch learns too little from them.
_LEAST = 16


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What a recipe depends on.

  Attributes:
    pairs: number of records.
    side: median of the images' shorter sides in pixels.
    captions: largest number of captions of a record.
    repeated: fraction of the captions that occur more than once.
  """

  pairs: int
  side: int
  captions: int
  repeated: float


@dataclasses.dataclass(frozen=True)
class StartingConfig:
  """A config to start with.

  Attributes:
    config: config of a training run.
    reasons: why it is like this, one sentence or two each.
  """

  config: ConfigDict
  reasons: tuple[str, ...]


def vocabulary_size(pairs: int) -> int:
  """Number of tokens for a vocabulary of one's own: with few pairs, captions must share tokens."""
  return 1024 if pairs < 20_000 else 4096 if pairs < FEW else 16_384


def most_tokens(pairs: int) -> int:
  """Longest context that a text tower of the recipe should read."""
  return 32 if pairs < FEW else 64


def held_out_fractions(pairs: int) -> tuple[float, float, float]:
  """Fractions for training, validation and test: a tenth each, and at most about 5,000 records."""
  part = round(min(0.1, 5000 / pairs), 6)
  return round(1 - 2 * part, 6), part, part


def starting_config(
  facts: DataFacts,
  *,
  source: Callable[[str], ConfigDict],
  tokenizer: ConfigDict,
  vocab_size: int,
  weights: str | None = None,
  start: Description | None = None,
) -> StartingConfig:
  """Returns a config for a number of pairs.

  Args:
    facts: what is known about the data.
    source: "train", "val" or "test" -> the call of that part.
    tokenizer: call of the tokenizer, with the context length to use.
    vocab_size: its number of tokens.
    weights: path of published weights to start from; None to train from scratch.
    start: description of these weights; training keeps their preprocessing and their loss.

  Raises:
    UserError: there are too few pairs to hold out any.
  """
  if facts.pairs < _LEAST:
    raise UserError(
      f"There are {facts.pairs} pairs, too few to train on and to hold out some; expected at least "
      f"{_LEAST}."
    )
  train = round(facts.pairs * held_out_fractions(facts.pairs)[0])
  if weights is not None and start is not None:
    plan = _fine_tuned(train, weights, start)
  elif facts.pairs < FEW:
    plan = _few_pairs(train, facts, tokenizer.context_length, vocab_size)
  else:
    plan = _many_pairs(train, tokenizer.context_length, vocab_size)
  if start is None:
    crop = call(RandomResizedCrop, size=plan.image_size, scale=plan.scale)
    view = call(ImageView, crop=crop, augment=(call(HorizontalFlip),))
    objective, preprocess = call(Clip, temperature=plan.temperature), None
  else:
    view, preprocess = tuning_view(start), start.preprocess
    objective = call(Siglip) if start.biased else call(Clip)
  per_evaluation = max(1, plan.steps // 4)
  config = experiment(
    data=call(
      Data,
      source=source("train"),
      views=call(Views, images={"image": view}, tokenizer=tokenizer, preprocess=preprocess),
      batch_size=plan.batch_size,
    ),
    model=plan.model,
    objective=objective,
    optimizer=call(
      adamw,
      learning_rate=plan.learning_rate,
      b2=plan.b2,
      schedule=call(warmup_cosine, warmup=plan.warmup),
      weight_decay=plan.weight_decay,
      grad_clip_norm=1.0,
    ),
    train=call(
      Training,
      steps=plan.steps,
      init_from=weights,
      init_logit=start is not None,
      log_every=max(1, plan.steps // 50),
      eval_every=per_evaluation,
      save_every=per_evaluation,
    ),
    evaluators={"val": call(Retrieval, source=source("val"), limit=1000)},
    final_evaluators={"test": call(Retrieval, source=source("test"))},
  )
  return StartingConfig(config, plan.reasons)


@dataclasses.dataclass(frozen=True)
class _Plan:
  model: ConfigDict
  image_size: int | tuple[int, int]
  batch_size: int
  steps: int
  learning_rate: float
  weight_decay: float
  b2: float
  temperature: float
  scale: tuple[float, float]
  reasons: tuple[str, ...]
  warmup: int | float = 0.1


def _power_of_two(x):
  return 2 ** math.floor(math.log2(max(x, 1)))


def _few_pairs(train, facts, context_length, vocab_size):
  """The recipe of configs/openclipart.py for a few thousand pairs on a CPU."""
  size = 64 if facts.side >= 64 else 48
  batch = min(512, _power_of_two(train / 4))
  samples = max(18 * train, 82_000 if train > 2000 else 40 * train)
  resnet = dict(stages=(1, 1, 1), width=48, block="basic", stem="small", groups=8, pool="flat")
  model = call(
    TwoTowers,
    image=call(
      ConcatTowers,
      towers=(
        call(BitResnet, **resnet, image_size=size, dtype="float32"),
        call(Hog, image_size=size, dtype="float32"),
      ),
    ),
    text=call(BagOfTokens, vocab_size=vocab_size, context_length=context_length, width=1024),
    embed_dim=1024,
    image_projection="mlp",
    projection_hidden_dim=4096,
  )
  return _Plan(
    model=model,
    image_size=size,
    batch_size=batch,
    steps=max(1, samples // batch),
    learning_rate=1e-3,
    weight_decay=0.3,
    b2=0.999,
    temperature=0.1,
    scale=(0.8, 1.0),
    reasons=(
      "The model is that of configs/openclipart.py, the best that was measured on 4,562 pairs: "
      "with so few, a small ResNet next to histograms of oriented gradients and a bag of tokens do "
      "better than transformers. It trains on a CPU.",
      f"Each image is seen {samples / train:.0f} times; there it was 18 times.",
      "Weights that others trained on many more pairs are a better start, if you have some: rerun "
      "with --weights=PATH.",
    ),
  )


def _many_pairs(train, context_length, vocab_size):
  """The study's models, the larger the more pairs there are."""
  size, patch = ("S", 16) if train < 10**6 else ("B", 32) if train < 10**7 else ("B", 16)
  epochs = 30 if train < 10**6 else 16 if train < 10**7 else 8
  # Of both towers, in the order of the sizes above; the rule needs no more.
  parameters = {("S", 16): 62e6, ("B", 32): 151e6, ("B", 16): 150e6}[size, patch]
  best = hyperparameters.recommend(epochs * train, parameters)
  model = call(
    TwoTowers,
    image=call(Vit, size=size, patch=patch, image_size=224),
    text=call(TextTransformer, size=size, vocab_size=vocab_size, context_length=context_length),
    embed_dim=512,
  )
  return _Plan(
    model=model,
    image_size=224,
    batch_size=best.batch,
    steps=best.steps,
    learning_rate=best.learning_rate,
    weight_decay=best.weight_decay,
    b2=best.beta2,
    warmup=best.warmup,
    temperature=0.07,
    scale=(0.4, 1.0),
    reasons=(
      f"A ViT-{size}/{patch} for {train:,} pairs, {epochs} times each. Ask clip-jax study advise "
      "for other models, methods and budgets.",
      f"Batch {best.batch}, learning rate {best.learning_rate:g} and {best.warmup} steps of "
      f"warm-up are what public sweeps found best for {epochs * train:.3g} samples "
      "(docs/evidence.md).",
      "It needs an accelerator; clip-jax plan says how long it takes on which.",
    ),
  )


def _fine_tuned(train, weights, start):
  """Published weights, trained further with a low learning rate."""
  model = copy.deepcopy(start.model)
  for tower in (model.image, model.text):
    if start.config is None and "dtype" in tower:
      tower.dtype = "auto"  # Other libraries' models are described in float32.
  batch = min(256, _power_of_two(train / 4))
  return _Plan(
    model=model,
    image_size=model.image.image_size,
    batch_size=batch,
    steps=max(1, 5 * train // batch),
    learning_rate=1e-5,
    weight_decay=0.1,
    b2=0.98,
    temperature=0.01,
    scale=(0.8, 1.0),
    reasons=(
      f"The model, its initial weights, preprocessing and logit scale are those of {weights}. A "
      "low learning rate and 5 passes over the data keep what it knows.",
      "The values are common practice, and not measured here: compare two or three learning rates.",
    ),
  )
