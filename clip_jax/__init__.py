"""Train, compare and choose CLIP models when data and compute are limited."""

import importlib
from typing import Any

__version__ = "0.1.0"

_FROM = {"load": "loading", "call": "config", "build": "config", "run": "loop"}
__all__ = ["build", "call", "load", "run"]


def __getattr__(name: str) -> Any:
  # Import on first use, so that `import clip_jax` is cheap and initialises no backend.
  if name in _FROM:
    return getattr(importlib.import_module(f"clip_jax.{_FROM[name]}"), name)
  raise AttributeError(f"module 'clip_jax' has no attribute {name!r}")
