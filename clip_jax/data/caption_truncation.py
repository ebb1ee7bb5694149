"""Chooses which tokens to keep when a training text is longer than the context length.

A short context makes the text tower cheap, and larger models lose less accuracy to it. Evaluation
always keeps the first tokens. The paper's fourth method, syntax masking (nouns first, then
adjectives, then verbs), is not implemented, because it needs a part-of-speech tagger.

Source: Li, Wang, Xie 2023 (CLIPA).
"""

from collections.abc import Sequence

import numpy as np


def random_in_order(n: int, max_tokens: int, rng: np.random.Generator) -> Sequence[int]:
  """Keeps random tokens in text order; CLIPA's code leaves them in the order drawn."""
  return np.sort(rng.choice(n, max_tokens, replace=False)).tolist()


def block(n: int, max_tokens: int, rng: np.random.Generator) -> Sequence[int]:
  """Keeps consecutive tokens from a random start."""
  start = int(rng.integers(n - max_tokens + 1))
  return range(start, start + max_tokens)


# name: (n, max_tokens, rng) -> indices of the tokens to keep; None uses the tokenizer's truncation.
TRUNCATIONS = {"first": None, "random": random_in_order, "block": block}
