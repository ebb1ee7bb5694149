"""Tests of advice: what it recommends, refuses and writes, and that more is never worse."""

import json
import runpy

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.study import (
  advice,
  advice_map,
  advice_report,
  candidates,
  evidence,
  own_runs,
  runs_table,
)
from clip_jax.study.__main__ import main


def best(pairs, **budget):
  return advice.advise(pairs, **budget).recipes[0].forecast.accuracy


@pytest.mark.parametrize("corpus", ["", "laion"])
def test_more_pairs_or_compute_are_never_worse(corpus):
  amounts = np.geomspace(1e17, 1e23, 7)
  for pairs in (1e6, 1e9):
    found = [best(pairs, compute=c, corpus=corpus) for c in amounts]
    assert (np.diff(found) >= -1e-9).all(), (pairs, found)
  for compute in (1e18, 1e21):
    found = [best(p, compute=compute, corpus=corpus) for p in np.geomspace(1e5, 1e10, 7)]
    assert (np.diff(found) >= -1e-9).all(), (compute, found)
  found = [best(1e8, samples=s, corpus=corpus) for s in np.geomspace(2e6, 1e11, 7)]
  assert (np.diff(found) >= -1e-9).all()


def test_the_model_grows_with_the_budget():
  size = lambda compute: (
    advice.advise(1e9, compute=compute, corpus="datacomp").recipes[0].candidate.shape.parameters
  )
  assert size(1e18) < size(1e20) < size(1e22)


def test_small_budgets_get_small_batches():
  found = advice.advise(12.8e6, samples=12.8e6, corpus="datacomp").recipes[0]
  assert found.settings.batch <= 4096 and found.settings.steps >= 3000
  assert found.forecast.high < 30  # The best public run of this size has 17.6%.


def test_a_recipe_is_predicted_like_the_public_run():
  found = advice.advise(1.28e8, samples=1.28e8, corpus="datacomp").recipes
  at = {r.name: r.forecast for r in found}
  for name, accuracy in (
    ("ViT-B/32, CLIP", 40.4),
    ("ViT-L/16, CLIP", 51.0),
    ("ViT-L/14, captioning (MaMMUT)", 57.8),
  ):
    assert at[name].accuracy == pytest.approx(accuracy, abs=2.2), name
  # The larger model is better at this size, although it was last in the paper's protocol.
  assert at["ViT-L/16, CLIP"].accuracy > at["ViT-B/32, CLIP"].accuracy


def test_compute_buys_samples_by_cost():
  for one in advice.advise(400e6, compute=1e20).recipes:
    assert one.flops <= 1.001e20
  flops = {c.name: c.flops for c in candidates.candidates()}
  assert flops["ViT-B/32, CLIP"] == pytest.approx(3 * 14.54e9)
  assert flops["ViT-B/16, FLIP"] < 0.7 * flops["ViT-B/16, CLIP"] < flops["ViT-B/16, SLIP"]


def test_augmentation_is_not_advised_for_one_epoch():
  for one in advice.advise(1e8, samples=1e8).recipes:
    assert one.candidate.objective != "da" or one.epochs >= 2


def test_the_command_prints_one_recommendation_two_next_and_a_deciding_run(capsys):
  main(["advise", "--pairs=50M", "--hours=24", "--chips=8", "--accelerator=h100", "--mfu=0.3"])
  printed = capsys.readouterr().out
  for words in (
    "  1. ",
    "  3. ",
    "Recommended: ",
    "What would decide: ",
    "extrapolated by",
    "hours",
  ):
    assert words in printed
  assert "  4. " not in printed
  assert "Published weights that are already better" in printed
  # 24 hours on 8 chips.
  assert "192 h100-hours" in printed


def test_advice_for_machines_has_all_recipes(capsys):
  main(["advise", "--pairs=50M", "--compute=1e20", "--corpus=datacomp", "--json"])
  found = json.loads(capsys.readouterr().out)
  assert len(found["recipes"]) > 20 and found["recommended"] in {
    r["name"] for r in found["recipes"]
  }
  accuracies = [r["accuracy"] for r in found["recipes"]]
  assert accuracies == sorted(accuracies, reverse=True)
  assert found["recipes"][0]["flops"] == pytest.approx(1e20)


def test_below_a_million_pairs_published_weights_come_first(capsys):
  main(["advise", "--pairs=5000", "--samples=1M"])
  printed = capsys.readouterr().out
  assert printed.startswith("Published weights that are already better")
  assert "openclipart, 4562 pairs" in printed and "with FLIP 18.6" in printed


def test_the_recipe_is_a_config(tmp_path, capsys):
  out = tmp_path / "recipe.py"
  main(["advise", "--pairs=50M", "--compute=1e19", "--corpus=datacomp", f"--out={out}"])
  assert f"Wrote {out}" in capsys.readouterr().out
  found = advice.advise(50e6, compute=1e19, corpus="datacomp")
  recipe = advice_report.recommended(found)
  config = runpy.run_path(str(out))["get_config"]()
  assert config.data.batch_size == recipe.settings.batch
  assert config.train.samples == round(recipe.samples)
  assert config.optimizer.learning_rate == recipe.settings.learning_rate
  assert recipe.candidate.shape.name == f"{config.model.image.size}-{config.model.image.patch}"
  with pytest.raises(UserError, match="must be a Python file"):
    advice_report.write_recipe(found, tmp_path / "recipe")


def runs_csv(path, rows):
  runs_table.write_rows(path, rows)
  return path


def row(name, size, epochs, accuracy, method="CLIP"):
  return dict(
    name=name,
    data="mine",
    protocol="epochs",
    arch="Tiny",
    method=method,
    aug="none",
    dataset_size=size,
    quality=100,
    samples_seen=size * epochs,
    seed=0,
    forward_gmacs=0.01,
    image_gmacs=0.008,
    parameters=4e5,
    i2t_r10=accuracy,
    t2i_r10=accuracy,
  )


def test_own_runs_are_added_and_what_they_changed_is_shown(tmp_path, capsys):
  first = [row(f"a{n}", n, 4, a) for n, a in ((1000, 20.0), (4000, 41.0), (16000, 62.0))]
  second = [row(f"b{n}", n, 4, a, "SLIP") for n, a in ((1000, 30.0), (4000, 52.0), (16000, 71.0))]
  one, two = runs_csv(tmp_path / "a.csv", first), runs_csv(tmp_path / "b.csv", second)
  main(["advise", "--pairs=4000", "--samples=16000", "--metric=r10", f"--runs={one},{two}"])
  printed = capsys.readouterr().out
  assert "1. Tiny, SLIP" in printed and "6 runs of yours are part of the fit" in printed
  runs = tuple(own_runs.read_own_runs(f"{one},{two}")("r10"))
  found = advice.advise(4000, samples=16000, metric="r10", runs=runs).recipes
  assert found[0].forecast.accuracy == pytest.approx(52, abs=4)
  assert found[1].forecast.accuracy == pytest.approx(41, abs=4)


def test_no_errors_and_nothing_but_errors_are_counts(tmp_path):
  values = (("zero", 1000, 0.0), ("some", 4000, 12.5), ("most", 16000, 70.0), ("all", 64000, 100.0))
  rows = [row(name, size, 1, value) | {"retrieval/examples": 1000} for name, size, value in values]
  path = runs_csv(tmp_path / "runs.csv", rows)
  runs = own_runs.read_own_runs(str(path))("i2t_r10")
  assert runs[0].accuracy == pytest.approx(100 * 0.5 / 1001) and runs[3].accuracy < 100
  found = advice.advise(64000, samples=64000, metric="i2t_r10", runs=runs)
  assert 40 < found.recipes[0].forecast.accuracy < 100


def test_the_size_of_a_test_set_follows_from_its_accuracies():
  accuracies = [100 * k / 459 for k in (3, 70, 80, 222)]
  assert own_runs.test_examples(accuracies) == 459
  assert own_runs.test_examples([]) == own_runs.test_examples([0.0, 100.0]) == 500
  assert own_runs.smoothed(100.0, 459) == pytest.approx(100 * 459.5 / 460)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--pairs=0", "--samples=1M"), "give at least one pair"),
    (("--pairs=-3M", "--compute=1e20"), "give at least one pair"),
    (("--pairs=1M", "--compute=nan"), "give at least one pair"),
    (("--pairs=1M", "--compute=1e30"), "beyond any run: the public runs have up to"),
    (("--pairs=1M", "--samples=1M", "--metric=beauty"), "no evidence about 'beauty'"),
    (("--pairs=1M", "--samples=1M", "--corpus=moon"), "no corpus 'moon'"),
    (("--pairs=1M", "--hours=1", "--accelerator=x"), "accelerator 'x' is unknown"),
    (("--pairs=1M", "--hours=1", "--mfu=2"), "utilisation=2.0 must be a fraction"),
    (("--pairs=1M", "--hours=1", "--mfu=0.3", "--utilisation=0.3"), "give one of them"),
  ],
)
def test_mistakes_are_reported(arguments, message):
  with pytest.raises(UserError, match=message):
    main(["advise", *arguments])


def test_nothing_is_said_about_no_compute():
  with pytest.raises(evidence.NoEvidence, match="Nothing can be said"):
    advice.advise(1e8, compute=1e9)


def test_the_map_shows_the_advice_at_each_place(tmp_path):
  found = advice_map.places(pairs=(1e7, 1e9), budgets=(1e20,))
  assert [(p.pairs, p.compute) for p in found] == [(1e7, 1e20), (1e9, 1e20)]
  assert found[1].recipe.forecast.accuracy == best(1e9, compute=1e20)
  advice_map.draw(found, tmp_path / "map.png")
  assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_flags_that_the_map_does_not_use_are_refused():
  with pytest.raises(UserError, match="does not use --pairs, --compute"):
    main(["advise", "--map=x.png", "--pairs=1M", "--compute=1e20"])
  with pytest.raises(UserError, match="x.jpg is not a PNG"):
    main(["advise", "--map=x.jpg"])
