"""Mixes several sources into one, in given proportions."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from clip_jax.cli.values import PositiveFloat, Records, checked
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_LONGEST = 65536  # Longest period of the pattern; weights are rounded to a multiple of 1/65536.


@checked
class Mixture:
  """Interleaves several sources so that every prefix contains them in the given proportions.

  The order is deterministic: among the first n records, n * weight come from each source, to within
  one record. The records of a source appear in its own order, and it starts over when it is
  exhausted. The records of its last, incomplete pass are spread evenly over the source.

  A record is the record of the source plus "origin", the name of the source.

  Attributes:
    counts: dict, number of records of the mixture that come from each source.
    visits: dict, how often the mixture contains each record of a source, on average.
  """

  def __init__(
    self,
    sources: Mapping[str, Source],
    weights: Mapping[str, PositiveFloat],
    size: Records | None = None,
  ):
    """Computes the order of the sources without reading any records.

    Args:
      sources: the sources by name.
      weights: the weight of each source by name; positive, only their ratios matter.
      size: number of records in the mixture. None (default) for the smallest size that contains
        every record of every source; it repeats the records of sources that are small for their
        weight.

    Raises:
      UserError: the names differ, a source is empty, or a weight is too small.
    """
    # Sort by name, because a config does not preserve the order of its entries.
    self._names = sorted(sources)
    if not self._names or self._names != sorted(weights):
      raise UserError(
        f"The mixture has sources {', '.join(self._names) or 'none'} but weights for "
        f"{', '.join(sorted(weights)) or 'none'}. Give each source one weight."
      )
    self.sources = {name: sources[name] for name in self._names}
    for name, source in self.sources.items():
      if not len(source):
        raise UserError(f"Source {name!r} of the mixture has no records.")
    total = math.fsum(weights.values())
    self._quotas = _quotas({name: weights[name] / total for name in self._names})
    self._source_at, self._rank_at = _pattern(self._quotas)
    self.size = self._smallest_size() if size is None else int(size)
    period, rest = divmod(self.size, len(self._source_at))
    self.counts = {
      name: int(period * quota + (self._source_at[:rest] == k).sum())
      for k, (name, quota) in enumerate(zip(self._names, self._quotas))
    }
    self.visits = {name: count / len(self.sources[name]) for name, count in self.counts.items()}

  def _smallest_size(self):
    """Returns the smallest size that contains every record of every source."""
    P = len(self._source_at)
    ends = []
    for k, (name, quota) in enumerate(zip(self._names, self._quotas)):
      periods, rank = divmod(len(self.sources[name]) - 1, quota)
      ends.append(periods * P + int(np.flatnonzero(self._source_at == k)[rank]) + 1)
    return max(ends)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    name, index = self.locate(i)
    return {**self.sources[name][index], "origin": name}

  def locate(self, i: int) -> tuple[str, int]:
    """Returns (name of the source, index in the source) of record `i`."""
    i = record_number(i, self.size)
    period, step = divmod(i, len(self._source_at))
    k = int(self._source_at[step])
    name = self._names[k]
    visit, length = period * self._quotas[k] + int(self._rank_at[step]), len(self.sources[name])
    rounds, rest = divmod(self.counts[name], length)
    if visit < rounds * length:
      return name, visit % length
    return name, (visit - rounds * length) * length // rest

  def __str__(self) -> str:
    """One line per source: its fraction of the mixture and how often each record appears."""
    return "\n".join(
      f"{name}: {self.counts[name] / self.size:.2%}, {self.counts[name]:,} of {self.size:,}; "
      f"each of its {len(self.sources[name]):,} records {self.visits[name]:.3g} times"
      for name in self._names
    )


def _quotas(shares):
  """Returns integers in the ratio of the shares: exact if possible with a sum up to `_LONGEST`."""
  w = np.array(list(shares.values()))
  sums = np.arange(1, _LONGEST + 1)[:, None]
  off = abs(w * sums - np.rint(w * sums)).max(1)
  fits = np.flatnonzero((off < 1e-9 * sums[:, 0]) & (np.rint(w * sums).min(1) > 0))
  P = int(sums[fits[0], 0]) if len(fits) else _LONGEST
  quotas = np.floor(w * P + 1e-6).astype(int)
  rests = np.argsort(quotas - w * P, kind="stable")[: P - quotas.sum()]
  quotas[rests] += 1
  for name, quota in zip(shares, quotas):
    if quota < 1:
      raise UserError(
        f"The weight of {name!r} is {shares[name]:.2g} of the total, less than 1 in "
        f"{_LONGEST:,}. Raise it, or remove the source."
      )
  return [int(q) for q in quotas]


def _pattern(quotas):
  """Computes one period: the source of each step and the number of its earlier steps.

  Step j of source k is due at (j + 1/2) / quota of the period, and steps are sorted by due time.
  This is Webster's apportionment method, which keeps every prefix close to its quota.
  """
  turn = np.repeat(np.arange(len(quotas)), quotas)
  rank = np.concatenate([np.arange(q) for q in quotas])
  due = (rank + 0.5) / np.array(quotas)[turn]
  order = np.lexsort((turn, due))
  return turn[order].astype(np.uint16), rank[order].astype(np.int32)
