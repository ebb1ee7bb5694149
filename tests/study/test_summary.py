"""Tests of the summary table, on made-up runs."""

import statistics

import pytest

from clip_jax.errors import UserError
from clip_jax.study import summary
from clip_jax.study.runs_table import RunResult


def run(error, seed, *, method="CLIP", aug="none", metric="i2t_r10", quality=100.0):
  return RunResult(
    data="d",
    protocol="same samples",
    arch="ViT-m",
    method=method,
    aug=aug,
    quality=quality,
    dataset_size=4562,
    samples_seen=76_800,
    forward_gmacs=0.5,
    metric=metric,
    error=error,
    seed=seed,
  )


def test_rows_show_mean_and_standard_deviation_over_seeds():
  errors = (80.0, 83.0, 86.5)
  points = [run(error, seed) for seed, error in enumerate(errors)]
  points += [run(70, 0, method="CLIP+DA", aug="RandAugment"), run(60, 0, metric="zero_shot")]
  lines = summary.format_summary(points).splitlines()
  accuracies = [100 - error for error in errors]
  expected = f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"
  assert lines[2] == (
    f"| d | same samples | ViT-m | CLIP | 4.562k | 76.8k | 38,400 | {expected} | 40.0 | 3 |"
  )
  assert "| CLIP+DA (RandAugment) |" in lines[3] and lines[3].endswith("| 30.0 |  | 1 |")


def test_unavailable_metrics_are_reported_with_the_available_ones():
  with pytest.raises(UserError, match="No run has shot5.*--metric.*i2t_r10"):
    summary.format_summary([run(50, 0)], ["shot5"])
  with pytest.raises(UserError, match="No run has any of i2t_r10"):
    summary.format_summary([])
