"""Tests of the rule for batch, learning rate and warm-up, on the public sweeps."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.study import hyperparameters as hp


def test_the_stored_rule_is_the_fitted_one():
  fitted = hp.fit_rule()
  for name, value in hp.stored_rule().items():
    assert value == pytest.approx(fitted[name], abs=0.02), name


@pytest.mark.parametrize("size", [12.8e6, 64e6, 1.28e9])
def test_at_a_size_that_was_left_out_the_rule_chooses_a_good_run(size):
  runs = hp.sweep_runs()
  out = runs["samples"] == size
  rises = hp.rises(hp.fit_rule(~out), runs)
  gaps, middles = [], []
  for group in np.unique(runs["group"][out]):
    own = np.flatnonzero(runs["group"] == group)
    if len(own) >= 6:
      accuracy = runs["accuracy"][own]
      gaps.append(accuracy.max() - accuracy[rises[own].argmin()])
      middles.append(accuracy.max() - np.median(accuracy))
  assert np.mean(gaps) < 0.7 and np.mean(gaps) < 0.8 * np.mean(middles)


def test_the_rule_gives_the_batches_of_the_sweeps():
  # The best of the public runs; the paper's fixed batch is 16,384.
  for samples, batch in ((1.28e6, 512), (12.8e6, 2048), (128e6, 8192)):
    found = hp.recommend(samples, 1.5e8)
    assert batch / 2 <= found.batch <= batch * 2
    assert 2000 <= found.steps <= 40_000 and 0.1 < found.warmup / found.steps < 0.7
  assert hp.recommend(1e8, 1e9).learning_rate < hp.recommend(1e8, 5e7).learning_rate


def test_penalties_are_zero_at_the_best_and_grow():
  best = hp.recommend(64e6, 1e8)
  at = lambda **changes: hp.penalty(
    64e6, 1e8, **{"batch": best.batch, "learning_rate": best.learning_rate} | changes
  )
  assert at() < 0.02
  for name, values in (("batch", (16e3, 64e3, 512e3)), ("learning_rate", (0.004, 0.02, 0.1))):
    found = [at(**{name: value}) for value in values]
    assert at() < found[0] < found[1] < found[2]


def test_runs_unlike_the_sweeps_are_warned_about():
  few = hp.warnings(12.8e6, 1.5e8, 16_384, 300)
  assert "781 steps of batch 16384" in few[0] and "about 2048" in few[0]
  assert any("warm-up has 20 steps" in line for line in hp.warnings(64e6, 1.5e8, 4096, 20))
  best = hp.recommend(64e6, 1.5e8)
  assert hp.warnings(64e6, 1.5e8, best.batch, best.warmup) == []


def test_impossible_runs_are_refused():
  with pytest.raises(UserError, match="must be at least 1; the sweeps have"):
    hp.recommend(0, 1e8)
  with pytest.raises(UserError, match="batch=100 must be between 1 and"):
    hp.recommend(10, 1e8, batch=100)
