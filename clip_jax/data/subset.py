"""The first so many records of a source, in one random order."""

import re
from typing import Any

import numpy as np

from clip_jax.data.permutation import mixed, permuted
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


class Subset:
  """The first `size` records of one seeded permutation of `source`.

  For one seed a smaller subset is inside a larger one: the first 10M are among the first 25M.
  """

  def __init__(self, source: Source, size: int | str, seed: int = 0):
    """Counts, and reads nothing.

    Args:
      source: the records.
      size: how many, as 10_000_000, "10M" (or k, B), or "10%".
      seed: of the permutation.

    Raises:
      UserError: no such size, or more than there is.
    """
    self.source, self.seed = source, seed
    self.size = count(size, len(source))
    if not 0 < self.size <= len(source):
      raise UserError(f"A subset of {size} is not between 1 and the {len(source):,} records that "
                      "the source has. Set a size within, or a larger source.")

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.size)
    return self.source[permuted(i, len(self.source), seed=mixed(self.seed))]

  def indices(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """int64 [stop - start], places in the source of the records from `start` up to `stop`."""
    start, stop, _ = slice(start, stop).indices(self.size)
    return self.places(np.arange(start, max(start, stop)))

  def places(self, at: np.ndarray) -> np.ndarray:
    """int64 [n], places in the source of the records number `at`, int [n]."""
    i = np.array(at, np.uint64)
    return permuted(i, len(self.source), seed=mixed(self.seed)).astype(np.int64)

  def describe(self) -> str:
    """One line for the log."""
    return (f"Subset: the first {self.size:,} of {len(self.source):,} records in random order "
            f"{self.seed}")


def count(size: int | str, total: int) -> int:
  """The number that a size means, for a source of `total` records.

  Args:
    size: 10_000_000, "10M" (or k, B), or "10%".

  Raises:
    UserError: it is none of these.
  """
  if isinstance(size, int):
    return size
  written = re.fullmatch(r"\s*([\d_.]+)\s*([kMB%]?)\s*", str(size))
  try:
    number, unit = float(written[1].replace("_", "")), written[2]
  except (TypeError, ValueError):
    raise UserError(
        f'size {size!r} is not a number of records, such as 10_000_000, "10M" or "10%".') from None
  return int(number * total / 100 + 1e-9) if unit == "%" else round(number * _UNITS[unit])
