"""CLIP as trained in the study: the baseline that the configs of the other strategies build on.

  python -m clip_jax.train --config=configs/clip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

Create both files from your own pairs with python -m clip_jax.prepare; the study's pairs (WebLI) are
not public. The authors have not run this config.

Source: Li, Xie, Cubuk 2024: ViT-B/32 at 224 px and a ViT-B text tower; images resized to a square
without cropping or augmentation; context length 16, vocabulary of 32,000; Adafactor as in Scaling
ViT, learning rate 1e-3, cosine decay, weight decay 1e-4; batch size 16,384; 3.4 billion samples.
Not specified there, chosen here: warm-up over 5% of the run, maximum gradient norm 1, initial
temperature 0.07, embeddings of width 512, and pooling ("gap" for images; "last" over end-of-text
tokens for texts).
Expect: 60.3% zero-shot accuracy on ImageNet with 3.4 billion pairs, each seen once; 52.5% with 100
million pairs, each seen 34 times (digitised from its fig. 9).
"""

from clip_jax.config import call
from clip_jax.data.crops import Resize
from clip_jax.data.records import ArrayRecord
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import scaling_vit_adafactor
from clip_jax.training.schedules import warmup_cosine


def get_config():
  """Builds the config."""
  size, length = 224, 16
  return experiment(
    data=call(
      Data,
      source=call(ArrayRecord, path="data/pairs"),
      views=call(
        Views,
        images={"image": call(ImageView, crop=call(Resize, size=size, jpeg_draft=True))},
        tokenizer=call(
          SentencePiece, model="data/32k.model", context_length=length, sticky_eos=True
        ),
      ),
      batch_size=16_384,
      threads=32,
    ),
    model=call(
      TwoTowers,
      image=call(Vit, size="B", patch=32, image_size=size, remat="full"),
      text=call(TextTransformer, size="B", vocab_size=32_000, context_length=length, remat="full"),
      embed_dim=512,
    ),
    objective=call(Clip, chunk_size=1024),
    optimizer=call(
      scaling_vit_adafactor,
      learning_rate=1e-3,
      schedule=call(warmup_cosine, warmup=0.05),
      weight_decay=1e-4,
      grad_clip_norm=1.0,
    ),
    train=call(Training, samples="3.4B", save_every=1000),
  )
