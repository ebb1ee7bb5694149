"""A run of a few seconds: the smallest towers on the bundled pairs. Argument: number of steps."""

from clip_jax.config import call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(steps="30"):
  return experiment(
    data=call(
      Data,
      source=call(OpenClipart, split="train"),
      views=call(
        Views,
        images={
          "image": call(
            ImageView, crop=call(RandomResizedCrop, size=32), augment=(call(HorizontalFlip),)
          )
        },
        tokenizer=call(SentencePiece, context_length=8),
      ),
      batch_size=32,
      threads=2,
    ),
    model=call(
      TwoTowers,
      image=call(Vit, size="mu", patch=8, image_size=32, dtype="float32"),
      text=call(
        TextTransformer, size="mu", vocab_size=4096, context_length=8, pool="mean", dtype="float32"
      ),
      embed_dim=32,
    ),
    objective=call(Clip, keep_patches=0.5),
    optimizer=call(
      adamw, learning_rate=3e-3, schedule=call(warmup_cosine, warmup=1), weight_decay=0.1
    ),
    train=call(Training, steps=int(steps), log_every=10, eval_every=20, save_every=4),
    evaluators={"val": call(Retrieval, source=call(OpenClipart, split="val"))},
    final_evaluators={
      "retrieval": call(Retrieval, source=call(OpenClipart, split="test")),
      "zero_shot": call(
        ZeroShot, source=call(OpenClipart, split="test"), classes=OpenClipart.classes, label="label"
      ),
    },
  )
