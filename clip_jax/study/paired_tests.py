"""Paired differences between matching runs, and their statistical significance."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math

import numpy as np
from scipy import special

from clip_jax.study.runs_table import RunResult

HOLDS, FAILS, INCONCLUSIVE, MISSING = "holds", "fails", "inconclusive", "no runs"


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean error difference between two kinds of runs; below 0, the first kind is better.

  Attributes:
    what: label of the comparison.
    mean: mean of first minus second, in percentage points of error.
    deviation: standard error of the mean.
    runs: number of pairs of runs, at least 2.
  """

  what: str
  mean: float
  deviation: float
  runs: int

  @property
  def bound(self) -> float:
    """Half-width of the 95% confidence interval of the mean, by Student's t."""
    return float(self.deviation * special.stdtrit(self.runs - 1, 0.975))

  @property
  def sign(self) -> int:
    """Sign of the mean, -1 or 1, if it is significant at 95%; otherwise 0."""
    return 0 if not abs(self.mean) > self.bound else int(math.copysign(1, self.mean))

  def __str__(self) -> str:
    return f"{self.what}: {self.mean:+.1f} ± {self.deviation:.1f} ({self.runs} pairs of runs)"


def difference(
  what: str,
  first: Iterable[RunResult],
  second: Iterable[RunResult],
  key: Callable[[RunResult], object],
) -> Difference | None:
  """Computes the paired difference of error, first minus second.

  Args:
    what: label of the comparison.
    first: runs of one kind.
    second: runs of the other kind; those with the same key are averaged.
    key: key of a run; runs with equal keys are paired.

  Returns:
    The difference, or None with fewer than two pairs.
  """
  by = {}
  for p in second:
    by.setdefault(key(p), []).append(p.error)
  differences = [p.error - float(np.mean(by[key(p)])) for p in first if key(p) in by]
  if len(differences) < 2:
    return None
  return Difference(
    what,
    float(np.mean(differences)),
    float(np.std(differences, ddof=1) / math.sqrt(len(differences))),
    len(differences),
  )


def verdict(expected: Sequence[tuple[Difference | None, int]]) -> tuple[str, str] | None:
  """Judges a claim by the signs of some differences.

  Args:
    expected: each difference with the sign that the claim predicts: -1, 1, or 0 for no difference.

  Returns:
    (verdict, the numbers behind it), or None if any difference is missing.
  """
  present = [(d, sign) for d, sign in expected if d is not None]
  if len(present) < len(expected) or not present:
    return None
  numbers = "; ".join(str(d) for d, _ in present)
  if any(d.sign == -sign and sign for d, sign in present) or any(
    sign == 0 and d.sign for d, sign in present
  ):
    return FAILS, numbers
  if all(d.sign == sign for d, sign in present):
    return HOLDS, numbers
  return INCONCLUSIVE, numbers
