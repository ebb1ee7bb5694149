"""Which tokens of a text are kept in training, where it has more than there is room for.

Shorter texts make a text tower cheap, and the larger the model the less they cost it. Evaluation
always keeps the first tokens. The paper's fourth way, syntax masking (nouns first, then adjectives,
then verbs), is left out, for it needs a tagger of parts of speech.

Source: Li, Wang, Xie 2023 (CLIPA).
"""

from collections.abc import Sequence

import numpy as np


def random_in_order(n: int, room: int, rng: np.random.Generator) -> Sequence[int]:
  """Any tokens, in the order of the text; CLIPA's code leaves them in the order drawn."""
  return np.sort(rng.choice(n, room, replace=False)).tolist()


def block(n: int, room: int, rng: np.random.Generator) -> Sequence[int]:
  """Consecutive tokens, from anywhere."""
  start = int(rng.integers(n - room + 1))
  return range(start, start + room)


# name: (n, room, rng) -> indices of the tokens kept; None for the tokenizer's own way.
WAYS = {"first": None, "random": random_in_order, "block": block}
