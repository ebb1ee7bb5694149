"""Accuracy from scores: ranks of the right class, and the numbers made of them."""

from collections.abc import Sequence

import numpy as np

from clip_jax.evaluators.answers import binomial_error

# Scores this close count as equal. One dot product computed in two places of a blocked matrix
# product differs by about 1e-7, and without the margin that noise would decide between equals.
TIE = 1e-6
_ROWS = 4096  # Of scores looked at together.


def class_ranks(scores: np.ndarray, right: Sequence[Sequence[int]],
                twins: np.ndarray | None = None) -> np.ndarray:
  """How many wrong classes score at least as high as the best right one.

  Ties count against, and so does what is not a number.

  Args:
    scores: float32 [n, C].
    right: of each row, the classes that are right, at least one.
    twins: int [C], for a class that has the very score of an earlier one, that one; for others
      themselves. Between such two the first is chosen, as argmax does.

  Returns:
    int64 [n].
  """
  ranks = []
  for start in range(0, len(scores), _ROWS):
    part = scores[start:start + _ROWS]
    own = right[start:start + _ROWS]
    rows = np.repeat(np.arange(len(part)), [len(one) for one in own])
    mine = np.zeros(part.shape, bool)
    mine[rows, np.concatenate(own)] = True
    best = np.where(mine, part, -np.inf).max(1, keepdims=True)  # NaN if one of them is.
    wrong = ~mine
    if twins is not None:
      # A later twin takes no answer from an earlier one.
      later = np.flatnonzero(twins != np.arange(part.shape[1]))
      wrong[:, later] &= ~mine[:, twins[later]]
    # Not "scores >= ...", which is false of NaN: a diverged model would know everything.
    ranks.append((wrong & ~(part < best - TIE)).sum(1))
  return np.concatenate(ranks)


def accuracies(rank: np.ndarray, right: Sequence[Sequence[int]],
               classes: int) -> tuple[dict[str, float], dict[str, float]]:
  """Metrics of ranks, and standard errors of those that are accuracies.

  Args:
    rank: int [n], 0 is first.
    right: of each, the classes that are right.
    classes: how many there are to choose from, C.

  Returns:
    `top1` and its `standard_error` (binomial), `mean_per_class` (over those that there are images
    of), `chance` and, where there are more than five classes, `top5`, all in percent; `examples`
    and `classes`. And the standard errors, by metric.
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
      np.sqrt((hits * (1 - hits) / seen[seen > 0]).sum()) / len(hits))
  return {
      **{name: 100 * share for name, share in shares.items()},
      "mean_per_class": 100 * float(hits.mean()), "standard_error": errors["top1"],
      "chance": 100 * float(np.mean(counts)) / classes,
      "examples": float(n), "classes": float(classes)}, errors
