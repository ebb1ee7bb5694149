"""Ranks and accuracies, compared with plain loops."""

import numpy as np
import pytest

from clip_jax.evaluators.accuracy import accuracies, class_ranks


def ranks_by_loops(scores, right):
  ranks = []
  for row, own in zip(scores, right):
    best = max(row[c] for c in own)
    ranks.append(sum(row[c] >= best - 1e-6 for c in range(len(row)) if c not in own))
  return ranks


def test_ranks_with_ties_and_several_correct_classes_match_loops(monkeypatch):
  monkeypatch.setattr("clip_jax.evaluators.accuracy._ROWS", 7)
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 6, (40, 9)).astype(np.float32)  # Many ties.
  right = [tuple(rng.permutation(9)[: rng.integers(1, 4)]) for _ in range(40)]
  assert class_ranks(scores, right).tolist() == ranks_by_loops(scores, right)


@pytest.mark.parametrize("nan_in", ["own", "all", "another"])
def test_nan_scores_count_as_errors(nan_in):
  scores = np.float32([[3, 1, 2]])
  scores[0, {"own": [0], "all": [0, 1, 2], "another": [1]}[nan_in]] = np.nan
  assert class_ranks(scores, [(0,)]).tolist() == [1 if nan_in == "another" else 2]


def test_accuracies_match_counts_by_hand():
  right = [(0,), (0,), (1,), (1,), (2,), (2, 6)]
  metrics, errors = accuracies(np.array([0, 1, 0, 4, 5, 9]), right, 7)
  assert metrics["top1"] == pytest.approx(200 / 6) and metrics["top5"] == pytest.approx(400 / 6)
  assert metrics["mean_per_class"] == pytest.approx(100 * (0.5 + 0.5 + 0 + 0) / 4)
  assert metrics["chance"] == pytest.approx(100 * (7 / 6) / 7)
  assert errors["top5"] == pytest.approx(100 * (2 / 3 * 1 / 3 / 6) ** 0.5)
  assert errors["mean_per_class"] == pytest.approx(100 * (0.25 / 2 + 0.25 / 2) ** 0.5 / 4)


def test_standard_errors_match_the_deviation_over_many_samples():
  rng = np.random.default_rng(0)
  draws = [
    accuracies(np.where(rng.random(60) < 0.3, 0, 1), [(k % 3,) for k in range(60)], 3)
    for _ in range(400)
  ]
  for name in ("top1", "mean_per_class"):
    assert np.mean([errors[name] for _, errors in draws]) == pytest.approx(
      np.std([metrics[name] for metrics, _ in draws]), rel=0.1
    )
