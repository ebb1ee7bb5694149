"""NUCLR: the contrast with the whole data set, with a popularity of every image and text.

  python -m clip_jax.train --config=configs/nuclr.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The authors have not run this config.

Source: Wang et al. 2025 and its code for CC3M (3 million pairs): batch size 512 on 2 GPUs, 30
epochs, temperature 0.01, gamma 0.8, initial popularity -0.05, and steps of 5e-6 for texts and 5e-7
for images after 5 epochs.
Not specified: the rest, which is as in configs/clip.py.
Differences from the publication: the steps of popularities have no momentum and do not decay, and
the term of the own pair has the popularity of that pair, not the largest one of the data.
Expect: no number is published for these towers.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.objectives.nuclr import Nuclr


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.data.batch_size = 512
  config.train.samples = None
  config.train.epochs = 30
  config.objective = call(Nuclr)
  return config
