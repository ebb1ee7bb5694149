"""Evaluators: each measures a model and returns numbers by name."""

from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_classifier import Lbfgs, Sgd
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.robustness import Robustness
from clip_jax.evaluators.zero_shot import ZeroShot

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "FewShot",
  "LabeledSet",
  "Lbfgs",
  "LinearProbe",
  "Retrieval",
  "Robustness",
  "Sgd",
  "ZeroShot",
)
__all__ = [
  "FewShot",
  "LabeledSet",
  "Lbfgs",
  "LinearProbe",
  "Retrieval",
  "Robustness",
  "Sgd",
  "ZeroShot",
]
