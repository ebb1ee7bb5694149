"""Synthetic scenes as a source for `prepare` and `score`."""

from clip_jax.config import call
from clip_jax.data.sources.shapes import Shapes


def get_config():
  return call(Shapes, size=3000, image_size=16)
