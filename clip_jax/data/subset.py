"""Random subsets of a source; smaller ones are contained in larger ones."""

from typing import Annotated, Any

import numpy as np

from clip_jax.cli.quantities import EXAMPLES, quantity
from clip_jax.cli.values import Seed, Where, checked, shorten
from clip_jax.data.permutation import feistel_permute, splitmix64
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source


def is_count(size: int | float | str) -> bool:
  """Whether a value is a number of records, as `count` understands it."""
  try:
    return 0 < count(size, 2**62) < 2**63
  except UserError:
    return False


# Ints and strings are written as in `count`.
Count = Annotated[
  int | float | str, Where(is_count, 'a number of records, such as 10_000_000, "10M" or "10%"')
]


@checked
class Subset:
  """The first `size` records of one seeded permutation of `source`.

  Subsets with the same seed are nested: the records of "10M" are among those of "25M".
  """

  def __init__(self, source: Source, size: Count, seed: Seed = 0):
    """Computes the size; reads no records.

    Args:
      source: the records.
      size: number of records, such as 10_000_000, "10M" (or k, B), "1e7" or "10%".
      seed: seed of the permutation.

    Raises:
      UserError: an invalid size, or more than the source has.
    """
    self.source, self.seed = source, seed
    self.size = count(size, len(source))
    if not 0 < self.size <= len(source):
      raise UserError(
        f"Subset size {size} is not between 1 and {len(source):,}, the size of the "
        "source. Set another size, or use a larger source."
      )

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.size)
    return self.source[feistel_permute(i, len(self.source), seed=splitmix64(self.seed))]

  def indices(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns the source indices of records `start` up to `stop`, int64 [stop - start]."""
    start, stop, _ = slice(start, stop).indices(self.size)
    return self.source_indices(np.arange(start, max(start, stop)))

  def source_indices(self, at: np.ndarray) -> np.ndarray:
    """Maps record indices, int [n], to indices in `source`, int64 [n]."""
    i = np.array(at, np.uint64)
    return feistel_permute(i, len(self.source), seed=splitmix64(self.seed)).astype(np.int64)

  def describe(self) -> str:
    """Returns one line for the log."""
    return f"Subset: {self.size:,} of {len(self.source):,} records at random, seed {self.seed}"


def count(size: int | float | str, total: int) -> int:
  """Parses a size to a number of records, for a source of `total` records.

  Args:
    size: such as 10_000_000, "10M" (or k, B), "1e7" or "10%".
    total: number of records that a percentage refers to.

  Raises:
    UserError: the size cannot be parsed.
  """
  try:
    return quantity(size, total)
  except ValueError:
    raise UserError(
      f'size {shorten(size)} is not a number of records, such as {EXAMPLES} or "10%".'
    ) from None
