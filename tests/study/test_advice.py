"""Tests of advice: accurate at runs, uncertain near them, no prediction far from them."""

import pytest

from clip_jax.errors import UserError
from clip_jax.study import advice, runs_table
from clip_jax.study.predictor import Predictor
from clip_jax.study.runs_table import RunResult


@pytest.fixture(scope="module")
def fixed():
  """Advice at a point of the paper's figures: 50 million pairs, 3.4 billion samples."""
  return advice.advise(50 * 10**6, samples=3_400_000_000)


@pytest.fixture(scope="module")
def predictor():
  """Laws and effects fitted to the paper's zero-shot errors."""
  return Predictor([p for p in runs_table.paper_results() if p.metric == "zero_shot"], "webli")


def test_predictions_match_existing_runs(fixed):
  by = {r.name: r for r in fixed[0].recipes}
  for arch, error in (
    ("ViT-B/32", 56.6),
    ("ViT-L/16", 47.0),
    ("ResNet-50", 58.2),
    ("Swin-T", 54.5),
  ):
    one = by[f"{arch}, CLIP, all pairs"]
    assert one.error == pytest.approx(error, abs=2.5) and one.low < error < one.high, arch
  assert by["ViT-B/32, CLIP+DA, all pairs"].error == pytest.approx(47.8, abs=2)
  assert by["ViT-B/32, SLIP, all pairs"].error == pytest.approx(50.6, abs=2)


def test_advice_follows_the_figures_where_the_text_contradicts_them(fixed):
  by = {r.name: r.error for r in fixed[0].recipes}
  # The paper's text calls ViT-B/32 the best architecture at all sizes, and small ViTs the best
  # for few pairs. Its figures disagree.
  assert by["Swin-T, CLIP, all pairs"] < by["ViT-B/32, CLIP, all pairs"]
  assert by["ViT-L/16, CLIP, all pairs"] < by["ViT-S/16, CLIP, all pairs"]
  printed = advice.format_advice(fixed).lower()
  for claim in ("consistently", "always", "at all data"):
    assert claim not in printed


def test_text_states_evidence_distance_and_command(fixed):
  printed = advice.format_advice(fixed, top=3)
  for words in (
    "figure 9a, 50M pairs",
    "(measured)",
    "error x 0.8",
    "not distinguishable",
    "--config=study/recipe:",
    "What would change the answer",
    "a quarter of the pairs",
    "only the ranking",
  ):
    assert words in printed, words
  assert "  4. " not in printed


def test_intervals_grow_with_distance_until_there_is_no_prediction(predictor):
  width = {}
  for times in (1, 2, 8):
    best, _ = predictor.rank(3_400_000_000 * times, None, 3_400_000_000 * times)
    one = next(r for r in best if r.name == "ViT-B/32, CLIP, all pairs")
    width[times] = one.high / one.low
  assert width[1] < width[2] < width[8]
  best, unpredicted = predictor.rank(10_000, None, 100_000)
  assert not best and all(
    "a factor of" in line or "less than one example" in line or "hurts" in line
    for line in unpredicted
  )
  assert not any(
    r.method == "CLIP+DA" and r.epochs < 2 for r in predictor.rank(10**8, None, 10**8)[0]
  )


def test_samples_follow_from_compute_and_cost(predictor):
  best, _ = predictor.rank(400 * 10**6, 1e20, None)
  for one in best:
    assert one.flops <= 1.001e20
  samples = {r.name: r.samples for r in best}
  assert samples["ViT-B/32, CLIP, all pairs"] > 8 * samples["ViT-L/16, CLIP, all pairs"]


def test_own_runs_come_first_and_are_fitted_the_same_way():
  def error(size, epochs, slip):
    worth = size * (1 + 8 * (1 - 2.718 ** (-(epochs - 1) / 8)))
    return (40 + 55 * (1 + worth / 2000) ** -1) * (0.9 if slip else 1)

  runs = [
    RunResult(
      "mine",
      "epochs",
      "A",
      "SLIP" if slip else "CLIP",
      "none",
      100.0,
      size,
      size * epochs,
      2.0 if slip else 1.0,
      "r10",
      error(size, epochs, slip),
      where=f"run-{size}-{epochs}-{slip}",
    )
    for size in (500, 1000, 2000, 4000, 8000)
    for epochs in (1, 8)
    for slip in (False, True)
  ]
  (own,) = advice.advise(2000, samples=16_000, runs=runs, metric="r10")
  assert own.data == "mine" and own.recipes[0].name == "A, SLIP, all pairs"
  assert own.recipes[0].error == pytest.approx(error(2000, 8, True), rel=0.03)
  printed = advice.format_advice([own])
  assert "your runs on mine" in printed and "run-2000-8" in printed


def test_invalid_questions_are_rejected():
  with pytest.raises(UserError, match="give at least one pair"):
    advice.advise(0, samples=1)
  with pytest.raises(UserError, match="give at least one pair"):
    advice.advise(1, samples=1, compute=1.0)
  with pytest.raises(UserError, match="no evidence about 'beauty'.*The paper has i2t_r1"):
    advice.advise(1, samples=1, metric="beauty")
