"""Sources that give some records of another one, one over the other: `Subset` and `Quality`.

A selection has `source`, the one it chooses from, and `places(at)`, where its records number `at`
lie in that one. Both together lead back from any record to the files it came from.
"""

from collections.abc import Iterator

import numpy as np

from clip_jax.interfaces import Source


def record_number(i: int, records: int) -> int:
  """A record's number as Python's own, whatever kind of integer it is.

  Raises:
    IndexError: it is not one of so many records.
  """
  i = int(i)
  if not 0 <= i < records:
    raise IndexError(f"record {i} of {records}")
  return i


def levels(source: Source) -> Iterator[Source]:
  """The source, what it selects from, what that selects from, down to the one that reads."""
  yield source
  while hasattr(source, "places"):
    source = source.source  # type: ignore[attr-defined]  # What has places has a source.
    yield source


def root(source: Source) -> Source:
  """The source under all selections."""
  *_, last = levels(source)
  return last


def places_in(source: Source, at: np.ndarray, level: Source | None = None) -> np.ndarray:
  """Where records of a source lie in one of its `levels`, by default in its root.

  Args:
    source: perhaps a selection.
    at: int64 [n], numbers of records, such as `batch["index"]`.
    level: one of `levels(source)`.

  Returns:
    int64 [n].
  """
  for one in levels(source):
    if one is level or not hasattr(one, "places"):
      break
    at = one.places(at)
  return at
