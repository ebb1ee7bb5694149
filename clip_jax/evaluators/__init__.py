"""Evaluators: each measures a model and returns metrics by name."""

from clip_jax.evaluators.caption_quality import CaptionQuality
from clip_jax.evaluators.concept_retrieval import ConceptRetrieval
from clip_jax.evaluators.few_shot import FewShot
from clip_jax.evaluators.labeled_sets import LabeledSet
from clip_jax.evaluators.linear_baseline import LinearBaseline
from clip_jax.evaluators.linear_classifier import Lbfgs, Sgd
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.results import Context, Evaluator, Result
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.robustness import Robustness
from clip_jax.evaluators.zero_shot import ZeroShot

# What a saved config may name, see `clip_jax.config`.
PARTS = (
  "CaptionQuality",
  "ConceptRetrieval",
  "FewShot",
  "LabeledSet",
  "Lbfgs",
  "LinearBaseline",
  "LinearProbe",
  "Retrieval",
  "Robustness",
  "Sgd",
  "ZeroShot",
)
__all__ = [
  "CaptionQuality",
  "ConceptRetrieval",
  "Context",
  "Evaluator",
  "FewShot",
  "LabeledSet",
  "Lbfgs",
  "LinearBaseline",
  "LinearProbe",
  "Result",
  "Retrieval",
  "Robustness",
  "Sgd",
  "ZeroShot",
]
