"""Words: CLIP, and a linear head that finds the words of the caption in the image (SuperCLIP).

  python -m clip_jax.train --config=configs/words.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The authors have not run this config.

Source: Zhao et al. 2025 (SuperCLIP) and Huang et al. 2024 (SuperClass): the tokens of the caption
as classes, weighted by inverse document frequency; the weight of the loss is 1.
Not specified: the rest, which is as in configs/clip.py.
Differences from the publication: the frequencies are counted during the run from its start, and
tokens that all captions have count nothing.
Expect: no number is published for these towers and this data.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.objectives.words import Words


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.objective = call(Words, pairs=config.objective)
  return config
