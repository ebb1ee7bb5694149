"""Paired differences between runs, and their confidence intervals."""

import numpy as np
import pytest
from scipy import stats

from clip_jax.study.paired_tests import Difference


# Two-sided 95% quantiles of Student's t, from a printed table.
@pytest.mark.parametrize(
  "pairs, quantile", [(2, 12.706), (3, 4.303), (10, 2.262), (12, 2.201), (31, 2.042)]
)
def test_interval_is_that_of_students_t(pairs, quantile):
  assert Difference("", 1.0, 0.5, pairs).bound == pytest.approx(0.5 * quantile, abs=5e-4)


@pytest.mark.parametrize("runs", [2, 5, 30])
def test_a_difference_counts_if_a_t_test_rejects_zero(runs):
  for seed in range(40):
    gaps = np.random.default_rng(seed).normal(0.6, 1, runs)
    made = Difference("", gaps.mean(), gaps.std(ddof=1) / np.sqrt(runs), runs)
    rejected = stats.ttest_1samp(gaps, 0).pvalue < 0.05
    assert made.sign == (np.sign(gaps.mean()) if rejected else 0)
