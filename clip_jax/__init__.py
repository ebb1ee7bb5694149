"""clip_jax: train, compare and choose CLIP models when data and compute are limited."""

__version__ = "0.1.0"
