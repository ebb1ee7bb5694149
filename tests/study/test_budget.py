"""Budgets, and compute against what the paper's Figure 8 says."""

from pathlib import Path
import runpy

import pytest

from clip_jax import parts
from clip_jax.errors import UserError
from clip_jax.study import evidence, recipes
from clip_jax.study.budget import at_budget, compute_of, flops_an_hour
from run_config import get_config

CLIP = Path(__file__).parents[2] / "configs" / "clip.py"


def recipe(**factors):
  make = recipes.paper(runpy.run_path(str(CLIP))["get_config"](), "nowhere")
  return make(**{**dict(size=10**7, samples=10**7), **factors})


@pytest.mark.parametrize("arch, gmacs", [
    ("ViT-Ti/16", 2.65), ("ViT-S/16", 6.03), ("ViT-B/32", 5.79), ("ViT-B/16", 19.15)])
def test_compute_is_the_papers(arch, gmacs):
  assert compute_of(recipe(arch=arch)).forward / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_strategies_cost_what_their_views_and_patches_do():
  plain, slip, flip = (compute_of(recipe(method=m)) for m in ("CLIP", "SLIP", "FLIP"))
  assert plain.text == slip.text == flip.text
  assert slip.image == pytest.approx(3 * plain.image, rel=0.01)
  # 24 of 49 patches: what is linear in them costs half, and so does nearly everything.
  assert flip.image / plain.image == pytest.approx(24 / 49, abs=0.02)
  assert slip.loss > plain.loss


def test_the_costs_that_advice_uses_are_those_that_are_counted():
  for arch, method in (("ViT-B/32", "CLIP"), ("ViT-B/32", "SLIP"), ("ResNet-50", "CLIP")):
    counted = compute_of(recipe(arch=arch, method=method)).forward / 1e9
    assert evidence._costs()[arch, method] == pytest.approx(counted, rel=1e-3)


def test_compute_without_data_is_that_of_the_run():
  config = get_config()
  made = parts.prepare(config)
  assert compute_of(config) == made.compute
  assert made.compute.flops == 6 * made.compute.forward


def test_budgets_are_interchangeable():
  config = get_config()
  an_example = compute_of(config).flops
  hours = 3200 * an_example / flops_an_hour("a100", 0.5)
  for budget in (dict(samples=3200), dict(samples="3.2k"), dict(flops=3200.5 * an_example),
                 dict(hours=hours * 1.0001, accelerator="a100", utilisation=0.5),
                 dict(epochs=3200 / 4562)):
    given = at_budget(config, **budget)
    assert parts.prepare(given).total_steps == 100, budget
  assert config.train.steps == 30, "the config itself is not changed"


@pytest.mark.parametrize("budget, message", [
    (dict(), "A budget is one of samples, epochs, flops and hours; given are none"),
    (dict(samples=1, epochs=1), "given are samples=1, epochs=1"),
    (dict(flops=0), "flops=0 pays for nothing"),
    (dict(flops=1e5), "less than one batch of 32"),
    (dict(hours=1, accelerator="abacus"), "No peak is known of accelerator 'abacus'"),
    (dict(hours=1, utilisation=40), "utilisation 40 is not a share"),
])
def test_a_budget_that_is_none_is_refused(budget, message):
  with pytest.raises(UserError, match=message):
    at_budget(get_config(), **budget)
