"""Several sources as one, by stated weights."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_LONGEST = 65536  # Steps in which weights are kept: they are exact to half a part in that many.


class Mixture:
  """Records of several sources, so that every stretch has them by the weights.

  Which source a record comes from is fixed: among the first n there are n * weight from each, give
  or take one. A source's records come in its own order, from the start again when they are used
  up; where that leaves a rest, or the source is not used up, those taken are spread evenly over it.

  A record is the source's, and "origin", the source's name.

  Attributes:
    counts: records of the mixture by source.
    visits: how often each record of a source is in the mixture, by source, on average.
  """

  def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float],
               size: int | None = None):
    """Lays the order out; reads nothing.

    Args:
      sources: by name.
      weights: by the same names; positive, and only their ratios matter.
      size: records in the mixture. None for the least that has every record of every source:
        those of a source that is small for its weight are then there several times.

    Raises:
      UserError: names that differ, an empty source, a weight that is none or too small, or a size
        below 1.
    """
    # By name, because a config does not keep the order that they were written in.
    self._names = sorted(sources)
    if not self._names or self._names != sorted(weights):
      raise UserError(f"The mixture has the sources {', '.join(self._names) or 'none'} and weights "
                      f"for {', '.join(sorted(weights)) or 'none'}. Give each source one weight.")
    self.sources = {name: sources[name] for name in self._names}
    for name, source in self.sources.items():
      if not len(source):
        raise UserError(f"The source {name!r} of the mixture has no records.")
      if not 0 < weights[name] < math.inf:
        raise UserError(f"The weight {weights[name]} of {name!r} is not a positive number. Leave a "
                        "source that is not wanted out of the mixture.")
    total = math.fsum(weights.values())
    self._quotas = _quotas({name: weights[name] / total for name in self._names})
    self._turn, self._rank = _pattern(self._quotas)
    self.size = self._least() if size is None else int(size)
    if self.size < 1:
      raise UserError(f"size {size} is not a number of records, at least 1.")
    period, rest = divmod(self.size, len(self._turn))
    self.counts = {name: int(period * quota + (self._turn[:rest] == k).sum())
                   for k, (name, quota) in enumerate(zip(self._names, self._quotas))}
    self.visits = {name: count / len(self.sources[name]) for name, count in self.counts.items()}

  def _least(self):
    """Smallest size in which every source is used up."""
    P = len(self._turn)
    ends = []
    for k, (name, quota) in enumerate(zip(self._names, self._quotas)):
      periods, rank = divmod(len(self.sources[name]) - 1, quota)
      ends.append(periods * P + int(np.flatnonzero(self._turn == k)[rank]) + 1)
    return max(ends)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    name, place = self.place(i)
    return {**self.sources[name][place], "origin": name}

  def place(self, i: int) -> tuple[str, int]:
    """Name of the source, and place in it, of record `i`."""
    i = record_number(i, self.size)
    period, step = divmod(i, len(self._turn))
    k = int(self._turn[step])
    name = self._names[k]
    visit, length = period * self._quotas[k] + int(self._rank[step]), len(self.sources[name])
    rounds, rest = divmod(self.counts[name], length)
    if visit < rounds * length:
      return name, visit % length
    return name, (visit - rounds * length) * length // rest

  def __str__(self) -> str:
    """One line for each source: its share, and how often its records are there."""
    return "\n".join(
        f"{name}: {self.counts[name] / self.size:.2%}, {self.counts[name]:,} of {self.size:,}; "
        f"each of its {len(self.sources[name]):,} records {self.visits[name]:.3g} times"
        for name in self._names)


def _quotas(shares):
  """Whole numbers in the ratio of the shares: exactly if small ones will do, or very nearly."""
  w = np.array(list(shares.values()))
  sums = np.arange(1, _LONGEST + 1)[:, None]
  off = abs(w * sums - np.rint(w * sums)).max(1)
  fits = np.flatnonzero((off < 1e-9 * sums[:, 0]) & (np.rint(w * sums).min(1) > 0))
  P = int(sums[fits[0], 0]) if len(fits) else _LONGEST
  quotas = np.floor(w * P + 1e-6).astype(int)
  rests = np.argsort(quotas - w * P, kind="stable")[:P - quotas.sum()]
  quotas[rests] += 1
  for name, quota in zip(shares, quotas):
    if quota < 1:
      raise UserError(f"The weight of {name!r} is {shares[name]:.2g} of the whole, less than 1 in "
                      f"{_LONGEST:,}. Raise it, or leave the source out.")
  return [int(q) for q in quotas]


def _pattern(quotas):
  """One period: the source of each step, and how many steps of that source are before it.

  Source k's visit j is due at (j + 1/2) / quota of the period; they come in the order of that. This
  is Webster's way of giving seats, which keeps every prefix near its quota.
  """
  turn = np.repeat(np.arange(len(quotas)), quotas)
  rank = np.concatenate([np.arange(q) for q in quotas])
  due = (rank + 0.5) / np.array(quotas)[turn]
  order = np.lexsort((turn, due))
  return turn[order].astype(np.uint16), rank[order].astype(np.int32)
