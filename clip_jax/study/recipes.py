"""Builders of the configs of a grid, at the paper's scale (`paper`) and for a laptop (`small`)."""

from collections.abc import Callable, Mapping, Sequence
import copy
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.augment.randaugment import RandAugment
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.records import ArrayRecord
from clip_jax.data.score_filter import ScoreFilter
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.flip import flip
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.swin import Swin
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine

TOWERS = {
  "ViT-Ti/16": (Vit, dict(size="Ti", patch=16)),
  "ViT-S/16": (Vit, dict(size="S", patch=16)),
  "ViT-B/32": (Vit, dict(size="B", patch=32)),
  "ViT-B/16": (Vit, dict(size="B", patch=16)),
  "ViT-L/16": (Vit, dict(size="L", patch=16)),
  "ResNet-50": (BitResnet, dict(layers=50)),
  "ConvNeXt-T": (ConvNext, dict(size="T")),
  "Swin-T": (Swin, dict(size="T")),
  "Mixer-B/32": (MlpMixer, dict(size="B", patch=32)),
}
# Stand-ins for images of 32 pixels, with relative sizes similar to those above.
SMALL_TOWERS = {
  "ViT-32x2": (Vit, dict(width=32, depth=2, num_heads=2, mlp_dim=128, patch=8)),
  "ViT-64x3": (Vit, dict(width=64, depth=3, num_heads=2, mlp_dim=256, patch=8)),
  "ViT-128x4": (Vit, dict(width=128, depth=4, num_heads=4, mlp_dim=512, patch=8)),
  "Mixer-64x3": (MlpMixer, dict(width=64, depth=3, patch=8)),
  "ResNet-8": (
    BitResnet,
    dict(stages=(1, 1, 1), width=16, block="basic", stem="small", groups=8, pool="flat"),
  ),
}
# Column of runs.csv -> metric of the final evaluators of configs/evaluations/study.py.
_SETS = {
  "A": "imagenet_a",
  "R": "imagenet_r",
  "Sketch": "imagenet_sketch",
  "V2": "imagenet_v2",
  "ReaL": "imagenet_real",
  "ObjectNet": "objectnet",
}
COLUMNS = {
  "zero_shot": "imagenet/top1",
  **{f"zero_shot_{n}": f"{s}/top1" for n, s in _SETS.items()},
  "shot5": "few_shot/5_shot_top1",
  "shot10": "few_shot/10_shot_top1",
  "linear_probe": "probe/top1",
  **{f"linear_probe_{n}": f"probe/{s}/top1" for n, s in _SETS.items()},
  "i2t_r1": "coco/image_to_text_r1",
  "t2i_r1": "coco/text_to_image_r1",
}
SMALL_COLUMNS = {
  "zero_shot": "zero_shot/top1",
  "i2t_r1": "retrieval/image_to_text_r1",
  "t2i_r1": "retrieval/text_to_image_r1",
  "i2t_r10": "retrieval/image_to_text_r10",
  "t2i_r10": "retrieval/text_to_image_r10",
  "linear_probe": "probe/top1",
  "shot5": "few_shot/5_shot_top1",
  "shot10": "few_shot/10_shot_top1",
}


def image_views(
  method: str, aug: str, *, size: int, min_area: float = 0.08
) -> tuple[dict[str, ConfigDict], dict[str, ConfigDict]]:
  """Builds the image views of a strategy and augmentation.

  Args:
    method: name of the strategy.
    aug: name of the augmentation; ignored by SLIP.
    size: image size in pixels.
    min_area: minimum fraction of the image area that a random crop keeps.

  Returns:
    (views made on the host by name, augmentations on the device by view)

  Raises:
    UserError: the augmentation does not exist.
  """
  cropped = lambda min_area, *chain: call(
    ImageView, crop=call(RandomResizedCrop, size=size, scale=(min_area, 1.0)), augment=chain
  )
  images = {
    "none": lambda: call(ImageView, crop=call(Resize, size=size, jpeg_draft=True)),
    "crop&flip": lambda: cropped(min_area, call(HorizontalFlip)),
    "RandAugment": lambda: cropped(min_area, call(HorizontalFlip), call(RandAugment)),
    "stacked RandAugment": lambda: cropped(min_area, call(RandAugment)),
  }
  if aug not in images:
    raise UserError(f"There is no augmentation {aug!r}; choose one of {', '.join(images)}.")
  if method == "SLIP":
    return (
      {
        "image": cropped(max(min_area, 0.5)),
        "view_a": cropped(min_area),
        "view_b": cropped(min_area),
      },
      {"view_a": call(SimclrColors), "view_b": call(SimclrColors)},
    )
  return {"image": images[aug]()}, (
    {"image": call(SimclrColors)} if aug == "stacked RandAugment" else {}
  )


def objective(
  method: str, *, chunk_size: int | None = None, temperature: float = 0.07, **head: Any
) -> ConfigDict:
  """Builds the objective of a strategy.

  Args:
    method: name of the strategy.
    chunk_size: chunk size of the loss; None computes it in one piece.
    temperature: initial temperature of the softmax losses.
    **head: arguments of SLIP's projection head.

  Raises:
    UserError: the strategy does not exist.
  """
  own = dict(chunk_size=chunk_size, temperature=temperature)
  makers = {
    "CLIP": lambda: call(Clip, **own),
    "CLIP+DA": lambda: call(Clip, **own),
    "CLIPA": lambda: call(Clip, **own),
    "FLIP": lambda: call(flip, **own),
    "SigLIP": lambda: call(Siglip, chunk_size=chunk_size),
    "SLIP": lambda: call(Slip, pairs=call(Clip, **own), chunk_size=chunk_size, **head),
  }
  if method not in makers:
    raise UserError(f"There is no strategy {method!r}; choose one of {', '.join(makers)}.")
  return makers[method]()


def tower(towers: dict[str, tuple], arch: str, **options: Any) -> ConfigDict:
  """Builds the config of an image tower by its name in `towers`.

  Raises:
    UserError: the architecture does not exist.
  """
  if arch not in towers:
    raise UserError(f"There is no architecture {arch!r}; choose one of {', '.join(towers)}.")
  tower_class, own = towers[arch]
  return call(tower_class, **own, **options)


def paper(
  base: ConfigDict,
  data: str,
  *,
  evaluators: Mapping[str, ConfigDict] | None = None,
  scores: str = "data/scores.npz",
) -> Callable[..., ConfigDict]:
  """Returns a function that builds configs at the paper's scale from that of plain CLIP.

  FLIP drops half of the patches and doubles the batch, as in the paper. The paper does not state
  the strengths of its augmentations; they are those of `configs/clip_augment.py`.

  Args:
    base: config of plain CLIP with ViT-B/32, `configs/clip.py`.
    data: folder written by `python -m clip_jax.prepare`, local or gs://.
    evaluators: evaluators to run at the end of each run; none by default.
    scores: file of that data written by `python -m clip_jax.score`; quality cuts need it.

  Source: Li, Xie, Cubuk 2024, section 3.
  """
  pixels = base.model.image.image_size

  def make(*, arch="ViT-B/32", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    config = copy.deepcopy(base)
    config.data.source = call(ArrayRecord, path=data)
    if quality < 100:
      # The cut applies to the whole pool, so the data is not also limited to `size`.
      config.data.source = call(
        ScoreFilter, source=config.data.source, scores=scores, keep=f"top {quality:g}%"
      )
    config.data.size = size if quality == 100 else None
    config.data.views.images, config.augment = map(
      ConfigDict, image_views(method, aug, size=pixels)
    )
    config.data.batch_size *= 2 if method == "FLIP" else 1
    config.model.image = tower(TOWERS, arch, remat=base.model.image.remat, image_size=pixels)
    config.objective = objective(method, chunk_size=base.objective.chunk_size)
    config.train.update(samples=samples, max_checkpoints=1)
    config.final_evaluators = ConfigDict(evaluators or {})
    config.seed = seed
    return config

  return make


def small(
  source: Callable[..., ConfigDict],
  *,
  train: ConfigDict,
  test: ConfigDict,
  classes: Sequence[str],
  tokenizer: str = "openclipart-1k",
  context_length: int = 24,
  image_size: int = 32,
  batch_size: int = 128,
) -> Callable[..., ConfigDict]:
  """Returns a function that builds configs small enough for a laptop: 32 pixels, `SMALL_TOWERS`.

  Args:
    source: function from quality in percent to the records: the whole, noisy pool at 100, its best
      part below.
    train: labeled records that the linear probe and few-shot evaluators train on.
    test: records of the final evaluation.
    classes: names of the classes.
    tokenizer: SentencePiece model.
    context_length: context length in tokens; CLIPA uses half of it.
    image_size: image size in pixels; CLIPA uses three quarters of it.
    batch_size: batch size.
  """

  def make(*, arch="ViT-64x3", method="CLIP", aug="none", size, quality=100, samples, seed=0):
    reduced = method == "CLIPA"
    pixels, tokens = (
      (image_size * 3 // 4, context_length // 2) if reduced else (image_size, context_length)
    )
    images, augment = image_views(method, aug, size=pixels, min_area=0.4)
    head: dict[str, Any] = (
      dict(projection_hidden_dim=256, outputs=64, dtype="float32") if method == "SLIP" else {}
    )
    return experiment(
      data=call(
        Data,
        source=source(quality),
        views=call(
          Views,
          images=images,
          tokenizer=call(SentencePiece, model=tokenizer, context_length=tokens, eos=False),
          shorten="block" if reduced else "first",
        ),
        batch_size=batch_size,
        size=round(size * quality / 100),
        threads=1,
      ),
      model=call(
        TwoTowers,
        image=tower(SMALL_TOWERS, arch, image_size=pixels, dtype="float32"),
        text=call(
          TextTransformer,
          width=64,
          depth=0,
          vocab_size=1024,
          context_length=tokens,
          pool="mean",
          dtype="float32",
        ),
        embed_dim=64,
      ),
      augment=augment,
      objective=objective(method, temperature=0.1, **head),
      optimizer=call(
        adamw,
        learning_rate=4e-3,
        schedule=call(warmup_cosine, warmup=0.1),
        weight_decay=0.3,
        grad_clip_norm=1.0,
      ),
      train=call(Training, samples=samples, log_every=20, save_every=100, max_checkpoints=1),
      final_evaluators={
        "retrieval": call(Retrieval, source=test),
        "zero_shot": call(ZeroShot, source=test, classes=tuple(classes)),
        "few_shot": call(FewShot, train=train, test=test, shots=(5, 10), classes=tuple(classes)),
        "probe": call(
          LinearProbe,
          train=call(LabeledSet, source=train, classes=tuple(classes)),
          test=call(LabeledSet, source=test, classes=tuple(classes)),
        ),
      },
      seed=seed,
    )

  return make
