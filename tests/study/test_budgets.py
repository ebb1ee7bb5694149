"""Tests of budgets, and of the compute of recipes against the paper's Figure 8."""

from pathlib import Path
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from clip_jax.errors import UserError
from clip_jax.study import hyperparameters, recipes, run_hints, tables
from clip_jax.study.budgets import at_budget, compute_of, flops_per_hour
from clip_jax.training import setup as setup_lib
from run_config import get_config

WEIGHTS = jax.ShapeDtypeStruct((150_000_000,), jnp.float32)
CLIP = Path(__file__).parents[2] / "configs" / "clip.py"


def recipe(**factors):
  make = recipes.paper(runpy.run_path(str(CLIP))["get_config"](), "nowhere")
  return make(**{**dict(size=10**7, samples=10**7), **factors})


@pytest.mark.parametrize(
  "arch, gmacs", [("ViT-Ti/16", 2.65), ("ViT-S/16", 6.03), ("ViT-B/32", 5.79), ("ViT-B/16", 19.15)]
)
def test_compute_matches_the_paper(arch, gmacs):
  assert compute_of(recipe(arch=arch)).forward / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_compute_scales_with_views_and_patches():
  plain, slip, flip = (compute_of(recipe(method=m)) for m in ("CLIP", "SLIP", "FLIP"))
  assert plain.text == slip.text == flip.text
  assert slip.image == pytest.approx(3 * plain.image, rel=0.01)
  # FLIP keeps 24 of 49 patches, and nearly all compute is linear in their number.
  assert flip.image / plain.image == pytest.approx(24 / 49, abs=0.02)
  assert slip.loss > plain.loss


def test_stored_costs_match_counted_compute():
  parts = ("image_gmacs", "text_gmacs", "loss_gmacs")
  costs = {
    (row["arch"], row["method"]): sum(float(row[part]) for part in parts)
    for row in tables.read_table("costs.csv")
  }
  for arch, method in (("ViT-B/32", "CLIP"), ("ViT-B/32", "SLIP"), ("ResNet-50", "CLIP")):
    counted = compute_of(recipe(arch=arch, method=method)).forward / 1e9
    assert costs[arch, method] == pytest.approx(counted, rel=1e-3)


def test_compute_from_the_config_alone_matches_the_run():
  config = get_config()
  made = setup_lib.build_setup(config)
  assert compute_of(config) == made.compute
  assert made.compute.flops == 6 * made.compute.forward


def test_budgets_are_interchangeable():
  config = get_config()
  an_example = compute_of(config).flops
  hours = 3200 * an_example / flops_per_hour("a100", 0.5)
  for budget in (
    dict(samples=3200),
    dict(samples="3.2k"),
    dict(flops=3200.5 * an_example),
    dict(hours=hours * 1.0001, accelerator="a100", utilisation=0.5),
    dict(epochs=3200 / 4562),
  ):
    given = at_budget(config, **budget)
    assert setup_lib.build_setup(given).total_steps == 100, budget
  assert config.train.steps == 30, "at_budget must not modify its argument"


@pytest.mark.parametrize(
  "budget, message",
  [
    (dict(), "samples, epochs, flops and hours; got none"),
    (dict(samples=1, epochs=1), "got samples=1, epochs=1"),
    (dict(flops=0), "flops=0 must be above 0"),
    (dict(flops=1e5), "less than one batch of 32"),
    (dict(hours=1, accelerator="abacus"), "accelerator 'abacus' is unknown"),
    (dict(hours=1, utilisation=40), "utilisation=40 must be a fraction"),
  ],
)
def test_invalid_budgets_are_rejected(budget, message):
  with pytest.raises(UserError, match=message):
    at_budget(get_config(), **budget)


def test_a_tuned_budget_sets_batch_and_optimizer():
  config = at_budget(recipe(arch="ViT-B/32"), samples="12.8M", tuned=True)
  best = hyperparameters.recommend(12.8e6, 1.98e8)
  assert config.data.batch_size == best.batch == 2048
  assert config.optimizer.learning_rate == pytest.approx(best.learning_rate, rel=0.05)
  assert config.optimizer.schedule.warmup == best.warmup and config.train.samples == 12_800_000
  with pytest.raises(UserError, match="tuned=True needs the number of samples"):
    at_budget(recipe(), epochs=2, tuned=True)


def test_train_hints_at_few_steps():
  config = at_budget(recipe(arch="ViT-B/32"), samples="12.8M")
  setup = SimpleNamespace(
    config=config, total_steps=781, state=SimpleNamespace(params={"w": WEIGHTS})
  )
  (few, warmup) = run_hints.hyperparameter_hints(setup)
  assert "781 steps of batch 16384" in few and "39 steps" in warmup
  tuned = at_budget(config, samples="12.8M", tuned=True)
  setup.config, setup.total_steps = tuned, 6250
  assert run_hints.hyperparameter_hints(setup) == []
  setup.config, setup.total_steps = get_config(), 3  # Too small for the sweeps to say anything.
  assert run_hints.hyperparameter_hints(setup) == []
