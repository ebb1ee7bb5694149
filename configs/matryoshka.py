"""Matryoshka: CLIP whose embeddings can be cut to their first 64, 128 or 256 entries.

  python -m clip_jax.train --config=configs/matryoshka.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

Then clip_jax.load(DIR, embed_dim=128) encodes into 128 entries. The authors have not run this
config.

Source: Kusupati et al. 2022: the loss of each prefix has weight 1, and each prefix is normalised.
Not specified: the lengths of the prefixes for CLIP (here 1/8, 1/4 and 1/2), whether they share the
temperature (here they do), and the rest, which is as in configs/clip.py.
Expect: no number is published for these towers and this data.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.objectives.matryoshka import Matryoshka


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.objective = call(Matryoshka, pairs=config.objective, dims=(64, 128, 256))
  return config
