"""A ViT CLIP on synthetic scenes at 224 px, to measure with and not to learn from.

  python -m clip_jax.bench step --config=configs/benchmark.py:B/16

The argument is the image tower, SIZE/PATCH; the text tower has the same size, S or more. The text is
16 tokens long, as in the study. Batch, arithmetic and objective are replaced on the command line:

  --config.data.batch_size=1024 --config.objective.keep_patches=0.5 --config.model.image.dtype=float32

Computes in bfloat16 on a TPU and a GPU. On a CPU set both towers' dtype to float32.
"""

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.optim import adamw
from clip_jax.schedules import warmup_cosine
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit


def get_config(tower="B/16"):
  """The config of the run."""
  size, patch = tower.split("/")
  image_size, length = 224, 16
  return experiment(
      data=call(
          Data,
          source=call(Shapes, size=1_000_000),
          views=call(
              Views,
              images={"image": call(ImageView, crop=call(RandomResizedCrop, size=image_size))},
              tokenizer=call(SentencePiece, length=length)),
          batch_size=256),
      model=call(
          TwoTowers,
          image=call(Vit, size=size, patch=int(patch), image_size=image_size),
          text=call(TextTransformer, size=size, length=length),
          embed=512),
      objective=call(Clip),
      optimizer=call(adamw, learning_rate=1e-3, schedule=call(warmup_cosine, warmup=100)),
      train=call(Training, steps=1000, log_every=20))
