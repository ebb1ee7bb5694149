"""clip_jax: train, compare and choose CLIP models when data and compute are limited."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # For type checkers and editors; at run time each is imported on first use.
  from clip_jax import (
    benches,
    config,
    costs,
    data,
    errors,
    evaluators,
    inference,
    interfaces,
    losses,
    model,
    nn,
    objectives,
    parallel,
    planning,
    pretrained,
    study,
    towers,
    training,
  )
  from clip_jax.config import build, call
  from clip_jax.inference.loading import load
  from clip_jax.training.loop import run

__version__ = "0.1.0"
__distribution__ = "scaling-clip-jax"  # PyPI's `clip-jax` is another package of the same name.

_FUNCTIONS = {
  "load": "inference.loading",
  "call": "config",
  "build": "config",
  "run": "training.loop",
}
__all__ = [
  "benches",
  "build",
  "call",
  "config",
  "costs",
  "data",
  "errors",
  "evaluators",
  "inference",
  "interfaces",
  "load",
  "losses",
  "model",
  "nn",
  "objectives",
  "parallel",
  "planning",
  "pretrained",
  "run",
  "study",
  "towers",
  "training",
]


def __getattr__(name: str) -> Any:
  # On first use, so that `import clip_jax` is cheap and starts no JAX backend.
  if name in _FUNCTIONS:
    return getattr(importlib.import_module(f"clip_jax.{_FUNCTIONS[name]}"), name)
  if name in __all__:
    return importlib.import_module(f"clip_jax.{name}")
  raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
