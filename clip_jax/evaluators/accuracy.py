"""Classification accuracy: ranks of the correct class and the metrics computed from them."""

from collections.abc import Sequence

import numpy as np

from clip_jax.evaluators.results import binomial_error

# Scores within this margin are tied. A blocked matrix product may round the same dot product
# differently by about 1e-7 depending on its position, and that noise must not break ties.
TIE = 1e-6
_ROWS = 4096  # Rows of scores processed at a time.


def class_ranks(
  scores: np.ndarray, right: Sequence[Sequence[int]], twins: np.ndarray | None = None
) -> np.ndarray:
  """Counts the wrong classes that score at least as high as the best correct one.

  Ties and NaN scores count as errors.

  Args:
    scores: float32 [n, C].
    right: the correct classes of each row, at least one.
    twins: int [C], maps a class that always has the same score as an earlier class to that class,
      and every other class to itself. Between two such classes the first wins, as with argmax.

  Returns:
    Rank of the best correct class, int64 [n]; 0 is first.
  """
  ranks = []
  for start in range(0, len(scores), _ROWS):
    part = scores[start : start + _ROWS]
    own = right[start : start + _ROWS]
    rows = np.repeat(np.arange(len(part)), [len(one) for one in own])
    mine = np.zeros(part.shape, bool)
    mine[rows, np.concatenate(own)] = True
    best = np.where(mine, part, -np.inf).max(1, keepdims=True)  # NaN if any of them is NaN.
    wrong = ~mine
    if twins is not None:
      # A later twin does not count against an earlier one, because argmax picks the earlier.
      later = np.flatnonzero(twins != np.arange(part.shape[1]))
      wrong[:, later] &= ~mine[:, twins[later]]
    # `scores >= ...` would be false for NaN, and a diverged model would be 100% accurate.
    ranks.append((wrong & ~(part < best - TIE)).sum(1))
  return np.concatenate(ranks)


def accuracies(
  rank: np.ndarray, right: Sequence[Sequence[int]], classes: int
) -> tuple[dict[str, float], dict[str, float]]:
  """Computes accuracy metrics from ranks, and the standard errors of the accuracies.

  Args:
    rank: int [n], rank of the best correct class of each example; 0 is first.
    right: the correct classes of each example.
    classes: number of classes to choose from, C.

  Returns:
    Metrics: `top1` and its binomial `standard_error`, `mean_per_class` (over the classes that have
    images), `chance` and, with more than five classes, `top5`, all in percent; `examples` and
    `classes`, which are counts. Then the standard errors by metric, in percentage points.
  """
  n = len(rank)
  counts = [len(one) for one in right]
  flat = np.concatenate(right).astype(np.int64)
  seen = np.bincount(flat, minlength=classes)
  hits = np.bincount(flat, np.repeat(rank < 1, counts), classes)[seen > 0] / seen[seen > 0]
  shares = {"top1": float(np.mean(rank < 1))}
  if classes > 5:
    shares["top5"] = float(np.mean(rank < 5))
  errors = {name: binomial_error(share, n) for name, share in shares.items()}
  errors["mean_per_class"] = 100 * float(
    np.sqrt((hits * (1 - hits) / seen[seen > 0]).sum()) / len(hits)
  )
  return {
    **{name: 100 * share for name, share in shares.items()},
    "mean_per_class": 100 * float(hits.mean()),
    "standard_error": errors["top1"],
    "chance": 100 * float(np.mean(counts)) / classes,
    "examples": float(n),
    "classes": float(classes),
  }, errors
