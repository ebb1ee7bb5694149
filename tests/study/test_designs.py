"""Tests of the grids in configs/study, of the configs of their runs, and of loading grid files."""

import importlib.util
from pathlib import Path

import jax
import pytest

from clip_jax.config import call, from_json, to_json
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.study import grid as grid_lib, recipes, runner
from clip_jax.training import setup as setup_lib
from run_config import get_config

CONFIGS = Path(__file__).parents[2] / "configs" / "study"
FACTORS = dict(data="d", protocol="one epoch", arch="A", method="CLIP", aug="none", quality=100.0)


def trace(config):
  """Builds the parts of a config and traces its train step."""
  made = setup_lib.build_setup(from_json(to_json(config)))
  with jax.set_mesh(made.mesh):
    return jax.eval_shape(setup_lib.jit_train_step(made), made.state, made.batch)


@pytest.mark.parametrize(
  "name, runs, total",
  [
    ("epochs", 25, 1.64e21),
    ("quality", 9, 8.1e20),
    ("vits", 105, 2.5e22),
    ("architectures", 105, 7.3e21),
    ("strategies", 84, 7.8e21),
    ("augmentations", 16, 7.6e20),
    ("openclipart", 66, 3.56e13),
    ("shapes", 120, 7.85e13),
    ("strategies_openclipart", 33, 4.51e13),
  ],
)
def test_grids_have_the_expected_runs_and_compute(name, runs, total):
  grid = grid_lib.load(str(CONFIGS / f"{name}.py"))
  assert len(grid.runs) == runs == len({run.fingerprint for run in grid.runs})
  assert sum(runner.flops(run.config) for run in grid.runs) == pytest.approx(total, rel=0.03)
  text = (CONFIGS / f"{name}.py").read_text()
  assert f"python -m clip_jax.study run --grid=configs/study/{name}.py" in text
  metrics = {f"{evaluator}/" for run in grid.runs for evaluator in run.config.final_evaluators}
  assert all(metric.startswith(tuple(metrics)) for metric in grid.columns.values())


def test_plan_lists_missing_runs(tmp_path):
  grid = grid_lib.load(str(CONFIGS / "augmentations.py"))
  printed = runner.format_plan(grid.runs, None, accelerator="a100", utilisation=0.5)
  assert "16 runs, 16 missing" in printed and "one a100 at 50% of its peak" in printed


@pytest.mark.parametrize(
  "name",
  [
    "openclipart",
    pytest.param("shapes", marks=pytest.mark.slow),
    pytest.param("strategies_openclipart", marks=pytest.mark.slow),
  ],
)
def test_each_kind_of_small_run_can_be_traced(name):
  grid, kinds = grid_lib.load(str(CONFIGS / f"{name}.py:1")), {}
  for run in grid.runs:
    kinds.setdefault((run.factors["arch"], run.factors["method"], run.factors["quality"]), run)
  assert len(kinds) >= 6
  for run in kinds.values():
    trace(run.config)


@pytest.mark.parametrize(
  "recipe", ["ViT-B/32,SLIP", "ViT-B/16,FLIP", "ResNet-50,CLIP", "Mixer-B/32,CLIP+DA"]
)
def test_advised_recipes_can_be_traced_at_full_size(recipe):
  spec = importlib.util.spec_from_file_location("recipe", CONFIGS / "recipe.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(recipe)
  config.data.source = call(OpenClipart)
  config.data.views.tokenizer.model = "openclipart-4k"
  trace(config)
  assert module.get_config(recipe + ",40").data.source.keep == "top 40%"
  with pytest.raises(UserError, match="cut '400', which is not a percentage"):
    module.get_config(recipe + ",400")


def test_unknown_factors_of_a_recipe_are_reported():
  for wrong, message in (
    (dict(aug="mixup"), "augmentation 'mixup'; .* none, crop&flip"),
    (dict(method="MoCo"), "strategy 'MoCo'; .* CLIP"),
    (dict(arch="VGG"), "architecture 'VGG'; .* ViT-Ti/16"),
  ):
    make = recipes.paper(grid_lib.load(str(CONFIGS / "vits.py")).runs[0].config, "nowhere")
    with pytest.raises(UserError, match=message):
      make(size=1, samples=1, **wrong)


def test_a_changed_config_is_a_different_run():
  config = get_config()
  one = grid_lib.Run("a", config, FACTORS)
  other = grid_lib.Run("a", grid_lib.with_changes(config, data__batch_size=64), FACTORS)
  assert one.folder != other.folder and config.data.batch_size == 32
  with pytest.raises(UserError, match="no data.batchsize; this section has .*batch_size"):
    grid_lib.with_changes(config, data__batchsize=64)


@pytest.mark.parametrize(
  "runs, message",
  [
    ([], "The grid has no runs"),
    ([("a", FACTORS), ("a", FACTORS)], "must be unique.* named a"),
    ([("a/b", FACTORS)], "Run name 'a/b'"),
    ([("a", {"arch": "A"})], "Run a has factors .* needs exactly data, protocol"),
  ],
)
def test_invalid_grids_are_rejected(runs, message):
  with pytest.raises(UserError, match=message):
    grid_lib.Grid([grid_lib.Run(name, get_config(), factors) for name, factors in runs], {})


def test_invalid_grid_files_are_reported(tmp_path):
  with pytest.raises(UserError, match="no grid file .*nothing.py"):
    grid_lib.load(str(tmp_path / "nothing.py"))
  (tmp_path / "a.py").write_text("def get_config(): pass")
  with pytest.raises(UserError, match="does not define get_grid"):
    grid_lib.load(str(tmp_path / "a.py"))
  (tmp_path / "b.py").write_text("def get_grid(): pass")
  with pytest.raises(UserError, match="takes no argument, but '3' was given"):
    grid_lib.load(str(tmp_path / "b.py:3"))
