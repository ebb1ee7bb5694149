"""Helpers for selections: sources such as `Subset` and `ScoreFilter` that wrap another source.

A selection has `source`, the wrapped source, and `source_indices(at)`, which maps its own record
indices to indices in `source`. Selections can be nested; together the two trace any record back to
its file.
"""

from collections.abc import Iterator

import numpy as np

from clip_jax.interfaces import Source


def record_number(i: int, records: int) -> int:
  """Converts a record index of any integer type to int.

  Raises:
    IndexError: it is not in range(records).
  """
  i = int(i)
  if not 0 <= i < records:
    raise IndexError(f"record {i} of {records}")
  return i


def selection_chain(source: Source) -> Iterator[Source]:
  """Yields the source and each source it wraps, down to the one that reads the records."""
  yield source
  while hasattr(source, "source_indices"):
    source = source.source  # type: ignore[attr-defined]  # Selections have both.
    yield source


def base_source(source: Source) -> Source:
  """Returns the innermost source, below all selections."""
  *_, last = selection_chain(source)
  return last


def base_indices_of(source: Source, at: np.ndarray, level: Source | None = None) -> np.ndarray:
  """Maps record indices of a source to indices in a source below it, by default the innermost.

  Args:
    source: any source, possibly a selection.
    at: int64 [n], record indices, such as `batch["index"]`.
    level: one of `selection_chain(source)`.

  Returns:
    int64 [n].
  """
  for one in selection_chain(source):
    if one is level or not hasattr(one, "source_indices"):
      break
    at = one.source_indices(at)
  return at
