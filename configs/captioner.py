"""Captioner: CLIP, and a text decoder that writes captions (CoCa).

  python -m clip_jax.train --config=configs/captioner.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

Then clip_jax.load(DIR).caption(images) writes captions. The authors have not run this config.

Source: Yu et al. 2022 (CoCa): causal decoder with cross-attention to the image; the weight of
captioning is 2 and that of the contrast 1.
Not specified: the depth of the decoder at this size (here 3 blocks as wide as the text tower), and
the rest, which is as in configs/clip.py.
Differences from the publication: the decoder shares no block with the text tower, so it works with
any text tower; it attends to all tokens of the image tower, without an attentional pooler.
Expect: no number is published for these towers and this data.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.objectives.captioner import Captioner


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.objective = call(Captioner, pairs=config.objective)
  return config
