"""Tests of the pooled law: formula, derivatives, directions, fit, and what is stored."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

from clip_jax.errors import UserError
from clip_jax.study import evidence, law_store, model_shapes, tables
from clip_jax.study.law_terms import Terms
from clip_jax.study.pooled_law import PooledLaw


def run(**changes):
  one = evidence.Observation(
    "DataComp-1.4B",
    "tuned",
    "clip",
    "CLIP",
    100.0,
    1e8,
    1e8,
    math.nan,
    model_shapes.model_shape("ViT-B/32"),
    "zero_shot",
  )
  return dataclasses.replace(one, **changes)


@pytest.fixture(scope="module")
def law():
  return law_store.stored_law("zero_shot")


def test_the_law_is_the_formula_of_its_docstring():
  question = run(corpus="", unique=2e7, samples=1.6e8, steps=4000.0)
  terms = Terms([])
  at = dict.fromkeys(terms.keys, 0.0)
  chosen = {"floor (logE)": -2.0, "model term (logA)": -0.5, "data term (logB)": 0.3}
  chosen |= {"eps (log_eps)": -1.5, "beta (log_beta)": -0.1, "pivot (pivot)": 0.4}
  chosen |= {"repeats (logR)": 1.5, "pairs in R (logR)": 0.5, "patches (offset)": -0.2}
  chosen |= {"amplitude (log_amplitude)": -0.5, "T0 (logT0)": 8.0, "p (log_p)": 0.2}
  at |= {f"common: {name}": value for name, value in chosen.items()}
  found = terms.design([question])(np.array([at[key] for key in terms.keys]))[0][0]

  repeats = math.exp(1.5) * 0.2**0.5
  examples = 0.2 * (1 + repeats * (1 - math.exp(-7 / repeats)))
  odds = math.exp(-2) + math.exp(-0.5) * examples ** -math.exp(-1.5)
  odds += math.exp(0.3) * (examples / math.exp(0.4)) ** -math.exp(-0.1)
  penalty = math.exp(-0.5) * math.log1p((math.exp(8) / 4000) ** math.exp(0.2))
  assert found == pytest.approx(-0.2 * math.log(49 / 196) + math.log(odds) + penalty, rel=1e-9)


def test_derivatives_match_finite_differences(law):
  rng = np.random.default_rng(0)
  design = law.terms.design(law.runs[::40])
  theta = law._values + 0.02 * rng.normal(size=law._values.shape)
  _, jacobian = design(theta)
  for _ in range(5):
    direction = rng.normal(size=theta.shape)
    ahead, behind = (design(theta + step * direction)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(jacobian @ direction, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-6)


def test_whatever_the_parameters_more_data_or_steps_never_raise_the_error(law):
  rng = np.random.default_rng(1)
  lower, upper = law.terms.bounds()
  sizes = 10 ** np.linspace(5.5, 10.5, 11)
  for _ in range(20):
    theta = np.clip(law._values + rng.normal(size=len(lower)) * law._deviation, lower, upper)
    base = run(
      corpus=rng.choice(["WebLI", "LAION-80M", ""]),
      method=rng.choice(["CLIP", "SLIP", "DA:RandAugment"]),
      shape=model_shapes.model_shape(rng.choice(["S-16", "B-32", "L-14", "ResNet-50"])),
    )
    series = {
      "samples": [dataclasses.replace(base, unique=3e5, samples=s) for s in sizes],
      "pairs": [dataclasses.replace(base, unique=u, samples=4e10) for u in sizes],
      "steps": [dataclasses.replace(base, steps=s / 1e4) for s in sizes],
      "one epoch": [dataclasses.replace(base, unique=s, samples=s) for s in sizes],
    }
    for name, runs in series.items():
      errors = law.terms.design(runs)(theta)[0]
      assert (np.diff(errors) <= 1e-9).all(), name


def test_the_fit_is_where_another_optimiser_ends():
  runs = evidence.observations("shot5")
  law = PooledLaw("shot5", runs, prior=law_store.stored_law("zero_shot"))
  lower, upper = law.terms.bounds()
  accuracy = np.array([r.accuracy for r in runs])
  noise = np.array([law.noise[r.group] for r in runs]) * _noise(accuracy, runs)
  scale = law._deviation

  def cost(u):
    value, gradient, _ = law._normal_equations(u * scale, noise)
    return value, gradient * scale

  bounds = optimize.Bounds(lower / scale, upper / scale)
  start = np.clip(law._mean, lower, upper) / scale
  other = optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds)
  refit = law._least_squares(law._values, noise, lower, upper)
  assert cost(refit / scale)[0] <= other.fun * 1.001
  questions = [run(corpus="WebLI", protocol="paper", metric="shot5", steps=20_000.0)]
  design = law.terms.design(questions)
  assert design(refit)[0] == pytest.approx(design(other.x * scale)[0], abs=0.05)


def _noise(accuracy, runs):
  from clip_jax.study import pooled_law

  return pooled_law._noise(accuracy, np.array([r.precision for r in runs]), 0.1)


def test_the_stored_law_belongs_to_the_tables_and_to_the_code(law):
  assert law_store.stored()["digest"] == tables.digest()
  # Parameters of another version of the terms would be ignored or missing.
  stored = law_store.stored()["laws"]["zero_shot"]["theta"]
  assert set(stored) <= set(law.terms.keys) and len(stored) > 0.6 * len(law.terms.keys)
  noise = _noise(np.array([r.accuracy for r in law.runs]), law.runs)
  noise *= np.array([law.noise[r.group] for r in law.runs])
  lower, upper = law.terms.bounds()
  cost, gradient, information = law._normal_equations(law._values, noise)
  free = (law._values > lower + 1e-4) & (law._values < upper - 1e-4)
  step = np.linalg.solve(information[np.ix_(free, free)], gradient[free])
  assert 0.5 * gradient[free] @ step < 0.01 * cost  # A step would gain next to nothing.


def test_numbers_of_the_tables_are_reproduced(law):
  forecasts = law(law.runs)
  miss = np.array([f.accuracy - r.accuracy for f, r in zip(forecasts, law.runs)])
  assert np.abs(miss).mean() < 0.8
  known = {("DataComp-1.4B", "B-32", 1.28e7): 11.2, ("Re-LAION-1.4B", "L-14", 1.28e9): 68.2}
  for (corpus, name, samples), accuracy in known.items():
    one = run(corpus=corpus, shape=model_shapes.model_shape(name), samples=samples, unique=samples)
    forecast = law([one])[0]
    assert forecast.low < accuracy < forecast.high
    assert forecast.accuracy == pytest.approx(accuracy, abs=1.0)


def test_an_unknown_corpus_and_a_far_size_widen_the_interval(law):
  width = lambda **changes: law([run(**changes)])[0].deviation
  assert width(corpus="") > 2 * width()
  assert width(samples=3e11, unique=1.4e9) > width(samples=3e9, unique=1.4e9)
  assert width(shape=model_shapes.model_shape("ResNet-50")) > width()


def test_every_row_has_a_source_and_every_table_is_used():
  for name in ("tuned_runs.csv", "tuned_sweeps.csv", "tuned_models.csv", "openclip_laion.csv"):
    assert {row["source"] for row in tables.read_table(name)} <= {
      "arXiv 2506.04598",
      "arXiv 2212.07143",
    }
  sources = {
    o.source.partition(",")[0].partition(":")[0] for o in evidence.observations("zero_shot")
  }
  assert sources == {
    "arXiv 2404.08197",
    "arXiv 2506.04598",
    "arXiv 2212.07143",
    "arXiv 2304.14108",
    "arXiv 2112.12750",
    "arXiv 2212.00794",
  }


@pytest.mark.parametrize(
  "name, same",
  [("ViT-B/32", "B-32"), ("vit_b_32", "B-32"), ("RN50", "ResNet-50"), ("g-14", "g-14")],
)
def test_models_have_several_spellings(name, same):
  assert model_shapes.model_shape(name).name == same


def test_totals_stand_for_a_model():
  known = model_shapes.model_shape("B-16")
  found = model_shapes.shape_from_totals(known.parameters * 1e6, known.forward_gflops)
  assert found.tokens == pytest.approx(known.tokens, rel=0.3)
  assert found.image_parameters == pytest.approx(known.image_parameters, rel=0.2)
  with pytest.raises(UserError, match="outside the range of the evidence; give --parameters"):
    model_shapes.shape_from_totals(1e3, 1.0)
  with pytest.raises(UserError, match="does not fit"):
    model_shapes.shape_from_totals(1.5e8, 1e6)
  with pytest.raises(UserError, match="no model 'ViT-X/1'"):
    model_shapes.model_shape("ViT-X/1")
