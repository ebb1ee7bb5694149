"""The model, two towers and two projections, and the learner, a model with its objective."""

from clip_jax.model.learner import Learner
from clip_jax.model.two_towers import TwoTowers

# What a saved config may name, see `clip_jax.config`.
PARTS = ("TwoTowers",)
__all__ = ["Learner", "TwoTowers"]
