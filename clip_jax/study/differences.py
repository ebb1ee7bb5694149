"""Differences between like runs, and when one counts."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math

import numpy as np

from clip_jax.study.records import Point

SURE = 2.0  # Standard errors, from many runs; from few, more.
# Student's t, two-sided 95%, for 2, 3, ... pairs of runs.
_STUDENT = (12.7, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
HOLDS, FAILS, UNTOLD, MISSING = "holds", "fails", "cannot be told", "no runs"


@dataclasses.dataclass(frozen=True)
class Difference:
  """Error of one kind of run less that of another; below 0, the first is better."""
  what: str
  mean: float
  deviation: float
  runs: int

  @property
  def bound(self) -> float:
    """Half the width of its interval, nineteen in twenty."""
    return self.deviation * (_STUDENT[self.runs - 2] if self.runs - 2 < len(_STUDENT) else SURE)

  @property
  def sign(self) -> int:
    """-1 or 1 when sure, else 0."""
    return 0 if not abs(self.mean) > self.bound else int(math.copysign(1, self.mean))

  def __str__(self) -> str:
    return f"{self.what} {self.mean:+.1f} ± {self.deviation:.1f} ({self.runs} pairs of runs)"


def difference(what: str, first: Iterable[Point], second: Iterable[Point],
               alike: Callable[[Point], object]) -> Difference | None:
  """First less second over all pairs that are `alike`; None without at least two pairs."""
  by = {}
  for p in second:
    by.setdefault(alike(p), []).append(p.error)
  gaps = [p.error - float(np.mean(by[alike(p)])) for p in first if alike(p) in by]
  if len(gaps) < 2:
    return None
  return Difference(what, float(np.mean(gaps)), float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))),
                    len(gaps))


def verdict(wanted: Sequence[tuple[Difference | None, int]]) -> tuple[str, str] | None:
  """(verdict, numbers) of differences and the sign that a statement wants of each, 0 for none.

  None where a difference is missing.
  """
  there = [(d, sign) for d, sign in wanted if d is not None]
  if len(there) < len(wanted) or not there:
    return None
  numbers = "; ".join(str(d) for d, _ in there)
  if any(d.sign == -sign and sign for d, sign in there) or any(
      sign == 0 and d.sign for d, sign in there):
    return FAILS, numbers
  if all(d.sign == sign for d, sign in there):
    return HOLDS, numbers
  return UNTOLD, numbers
