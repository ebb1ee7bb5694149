"""CLIP as the study trains it: the baseline that the other strategies' configs start from.

  python -m clip_jax.train --config=configs/clip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

Both files are made by python -m clip_jax.prepare, from pairs of your own: the study's (WebLI) are
not public. Not run here.

From Li, Xie, Cubuk 2024: ViT-B/32 at 224 px and a ViT-B text tower; images squashed, not
augmented; 16 tokens of 32,000 pieces; Adafactor as of Scaling ViT, learning rate 1e-3, cosine,
weight decay 1e-4; batch 16,384; 3.4 billion samples.
Left open there, chosen here: a warm-up of 5%, gradients cut to norm 1, the temperature's start of
0.07, an embedding of 512, pooling ("gap"; "last" over end tokens for texts).
Expect: at 3.4 billion pairs, each seen once, 60.3% of ImageNet zero-shot; at 100 million pairs seen
34 times 52.5% (its fig. 9, digitised).
"""

from clip_jax.config import call
from clip_jax.data.crops import Resize
from clip_jax.data.records import ArrayRecord
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.optim import scaling_vit_adafactor
from clip_jax.schedules import warmup_cosine
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit


def get_config():
  """The config of the run."""
  size, length = 224, 16
  return experiment(
      data=call(
          Data,
          source=call(ArrayRecord, path="data/pairs"),
          views=call(
              Views,
              images={"image": call(ImageView, crop=call(Resize, size=size, shrink=True))},
              tokenizer=call(SentencePiece, model="data/32k.model", length=length,
                             sticky_eos=True)),
          batch_size=16_384, threads=32),
      model=call(
          TwoTowers,
          image=call(Vit, size="B", patch=32, image_size=size, remat="full"),
          text=call(TextTransformer, size="B", vocabulary=32_000, length=length, remat="full"),
          embed=512),
      objective=call(Clip, block=1024),
      optimizer=call(scaling_vit_adafactor, learning_rate=1e-3,
                     schedule=call(warmup_cosine, warmup=0.05), weight_decay=1e-4, clip=1.0),
      train=call(Training, samples="3.4B", save_every=1000))
