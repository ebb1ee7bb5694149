"""Tests of the calibration: what is stored reaches the goals, and can be computed again."""

import csv
from pathlib import Path

import pytest

from clip_jax.study import calibration, law_store

STORED = Path(__file__).parents[2] / "docs/study/calibration.csv"


@pytest.fixture(scope="module")
def stored():
  with STORED.open(newline="") as file:
    rows = list(csv.DictReader(file))
  return {(r["metric"], r["scheme"], r["group"]): r for r in rows}


def test_intervals_hold_and_errors_are_small(stored):
  at = lambda scheme, group="all", metric="zero_shot": {
    name: float(value)
    for name, value in stored[metric, scheme, group].items()
    if name not in ("metric", "scheme", "group")
  }
  for scheme in ("size", "largest", "model"):
    assert 85 <= at(scheme)["coverage"] <= 97, scheme
    assert at(scheme)["error"] <= 1.5, scheme
  assert at("corpus")["coverage"] >= 85 and at("corpus")["error"] <= 4
  for group in ("DataComp-1.4B", "Re-LAION-1.4B"):
    assert at("size", group)["error"] <= 0.6 and at("size", group)["rank"] >= 0.9


def test_a_scheme_computed_again_gives_the_stored_numbers(stored):
  held = calibration.held_out_runs(law_store.stored_law("zero_shot"), ["largest"])
  found = {c.group: c for c in calibration.summarize("zero_shot", held)}
  row = stored["zero_shot", "largest", "all"]
  assert found["all"].runs == int(row["runs"])
  assert found["all"].error == pytest.approx(float(row["error"]), abs=0.02)
  assert found["all"].coverage == pytest.approx(float(row["coverage"]), abs=2)


def test_runs_are_left_out_of_the_fit_that_predicts_them():
  law = law_store.stored_law("zero_shot")
  for scheme, (_, masks) in calibration.SCHEMES.items():
    found = masks(law.runs)
    total = sum(sum(map(int, mask)) for mask in found)
    assert 0 < total <= len(law.runs), scheme
    assert all(not all(mask) for mask in found), scheme
  (largest,) = calibration.SCHEMES["largest"][1](law.runs)
  kept = [r for r, left in zip(law.runs, largest) if not left and r.corpus == "DataComp-1.4B"]
  assert max(r.samples for r in kept) == 1.28e9
