"""Tests of fitting laws, on made-up points of a known law and on the paper's numbers."""

import math

import numpy as np
import pytest
from scipy import optimize

from clip_jax.errors import UserError
from clip_jax.study import law_fits, laws, runs_table

D = np.array([10, 25, 50, 100, 200, 400, 800, 1600, 3200]) * 1e6


def error(x, epochs=1.0, *, floor=35.0, scale=3e8, exponent=1.2, repeats=8.0):
  """Computes the law point by point, independently of `laws`."""

  def one(x, epochs):
    effective = x * (1 + repeats * (1 - math.exp(-(epochs - 1) / repeats)))
    return floor + (100 - floor) * (1 + effective / scale) ** -exponent

  return np.array([one(a, b) for a, b in zip(*np.broadcast_arrays(np.atleast_1d(x), epochs))])


def noisy(values, seed, by=0.02):
  return values * np.exp(np.random.default_rng(seed).normal(0, by, len(values)))


def test_constants_of_an_exact_law_are_recovered():
  found = {n: v[0] for n, v in laws.fit(D, error(D), replicates=2).constants.items()}
  assert found["floor"] == pytest.approx(35, rel=0.01)
  assert found["exponent"] == pytest.approx(1.2, rel=0.02)
  assert found["scale"] == pytest.approx(3e8, rel=0.05)
  assert "repeats" not in found


@pytest.mark.parametrize("epochs", [1.0, 4.0, 0.5])
def test_slopes_are_the_derivatives(epochs):
  at = np.array([-0.5, 19.0, 0.1, 2.0])
  x, epochs = laws._as_arrays(D, epochs)
  for i, one in enumerate(np.eye(4) * 1e-5):
    up, down = (
      laws._predict_log_error((at + sign * one)[None], x, epochs, 100.0)[0] for sign in (1, -1)
    )
    np.testing.assert_allclose(
      laws._slopes(at, x, epochs, 100.0)[:, i], (up - down) / 2e-5, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_minimises_the_robust_loss(seed):
  """A general optimizer, started at the fit and elsewhere, finds no better law."""
  seen = np.log(noisy(error(D), seed, 0.1))

  def loss(theta):
    floor, scale, exponent = 100 / (1 + np.exp(-theta[0])), np.exp(theta[1]), np.exp(theta[2])
    predicted = np.log(floor + (100 - floor) * (1 + D / scale) ** -exponent)
    return (np.sqrt(1 + ((predicted - seen) / 0.05) ** 2) - 1).sum()

  law = laws.fit(D, np.exp(seen), replicates=1)
  box = [(-7, 4), (np.log(D.min()) - 3, np.log(D.max()) + 3), (np.log(0.03), np.log(8))]
  for start in (law.parameters[:3], [-1.0, np.log(1e8), 0.0], [1.0, np.log(1e9), -1.0]):
    found = optimize.minimize(
      loss, start, bounds=box, method="Nelder-Mead", options={"xatol": 1e-6}
    )
    assert loss(law.parameters[:3]) <= found.fun * (1 + 1e-3)


def test_value_of_repetition_is_recovered():
  x, epochs = (a.ravel() for a in np.meshgrid(D, [1, 2, 8, 32, 128]))
  law = laws.fit(x, noisy(error(x, epochs), 0), epochs, replicates=40)
  _, low, high = law.constants["repeats"]
  assert low <= 8 <= high and high / low < 2
  np.testing.assert_allclose(law(x, epochs), error(x, epochs), rtol=0.03)


def test_fit_is_robust_to_an_outlier():
  values = error(D)
  values[4] *= 1.3
  law = laws.fit(D, values, replicates=2)
  others = np.arange(len(D)) != 4
  np.testing.assert_allclose(law(D)[others], error(D)[others], rtol=0.03)


def test_intervals_have_their_nominal_coverage():
  inside = []
  for seed in range(24):
    low, high = laws.fit(D, noisy(error(D), seed), replicates=60).interval(D, noise=False)
    inside.append((low <= error(D)) & (error(D) <= high))
  assert 0.8 <= np.mean(inside) <= 0.97  # The nominal coverage is 90%.


def test_held_out_predicts_the_largest_size():
  held = laws.held_out(D, noisy(error(D), 1, 0.01))
  assert held.x == 3.2e9 and held.factor == 2
  assert held.inside and abs(held.miss) < 3
  broken = error(D)
  broken[-1] *= 1.5
  assert not laws.held_out(D, broken).inside
  assert laws.held_out(D[:5], error(D[:5])) is None


def test_too_few_or_invalid_points_are_rejected():
  with pytest.raises(UserError, match="3 constants to 4 distinct points; at least 5"):
    laws.fit(D[:4], error(D[:4]))
  with pytest.raises(UserError, match="sizes and errors above 0"):
    laws.fit(D, error(D) * 0)


def test_frontier_marks_pareto_optimal_points():
  assert laws.frontier([1, 2, 3, 4], [90, 95, 70, 71]).tolist() == [True, False, True, False]


def test_one_law_of_data_and_epochs_fits_the_papers_runs():
  points = [
    p
    for p in runs_table.paper_results()
    if p.metric == "zero_shot" and p.arch == "ViT-B/32" and p.method == "CLIP"
  ]
  found = {one.kind: one for one in law_fits.fit_all(points)}["data and epochs"]
  assert found.law.spread < 0.03 and 5 < found.law.constants["repeats"][0] < 9
  assert abs(found.held_out.miss) < 1.5
  printed = law_fits.format_laws([found])
  assert "data and epochs" in printed and "ViT-B/32" in printed


def test_fits_are_written_with_intervals(tmp_path):
  points = [
    runs_table.RunResult(
      "d", "one epoch", "A", "CLIP", "none", 100, int(x), int(x), 1.0, "zero_shot", float(e)
    )
    for x, e in zip(D, error(D))
  ]
  law_fits.write_csv(law_fits.fit_all(points), tmp_path / "fits.csv")
  text = (tmp_path / "fits.csv").read_text()
  assert "floor_low" in text and "data, one epoch" in text
  with pytest.raises(UserError, match="No series has the 5 different sizes"):
    law_fits.fit_all(points[:3])
