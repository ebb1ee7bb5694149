"""Every config is built and its train step is traced at full size."""

import difflib
import importlib.util
from pathlib import Path

import jax
from ml_collections.config_dict import ConfigDict
import pytest

from clip_jax.config import call, from_json, public_name, to_json
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.training import setup as setup_lib
from golden import make_configs
from golden.make_configs import ARGUMENTS

# The evaluation suites are tested in test_evaluate.py, and the study's grids in tests/study.
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("[!_]*.py"))
TRAINED = [path for path in CONFIGS if path.stem != "benchmark"]
CASES = [
  pytest.param(path, argument, id=":".join([path.stem, *argument]))
  for path in CONFIGS
  if path.stem not in make_configs.NEED_DATA
  for argument in ([(a,) for a in ARGUMENTS[path.stem]] if path.stem in ARGUMENTS else [()])
]


def module_of(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def with_data(config):
  """Replaces a source and a tokenizer that are not in the package by ones that are."""
  config = from_json(to_json(config))
  if config.data.source.fn != public_name(OpenClipart):
    config.data.source = call(OpenClipart)
    if "model" in config.data.views.tokenizer:
      config.data.views.tokenizer.model = "openclipart-4k"
    with config.unlocked():  # They read the same data.
      config.evaluators, config.final_evaluators = ConfigDict(), ConfigDict()
  return config


@pytest.mark.parametrize("path, argument", CASES)
def test_a_config_is_built_and_its_step_traced(path, argument):
  made = setup_lib.build_setup(with_data(module_of(path).get_config(*argument)))
  with jax.set_mesh(made.mesh):
    state, metrics = jax.eval_shape(setup_lib.jit_train_step(made), made.state, made.batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), made.state
  )
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
def test_the_header_of_a_config_has_its_command_sources_and_expected_results(path):
  text = module_of(path).__doc__
  words = ("cores", "min", "standard error", "commit")
  if "The authors have not run this config." in text.replace("\n", " "):
    words = ("Source", "Not specified", "Expect: ")
  for word in (f"python -m clip_jax.train --config=configs/{path.stem}.py", *words):
    assert word in text, f"the header of {path.name} does not have {word!r}"
  assert len(path.read_text().splitlines()) <= 110, "more than a screen"


@pytest.mark.parametrize("name", sorted({*ARGUMENTS} - {"finetune"}))  # It takes any model.
def test_the_error_for_an_unknown_argument_lists_the_arguments(name):
  path = next(p for p in CONFIGS if p.stem == name)
  with pytest.raises(UserError, match=f"configs/.*:nothing .* {', '.join(ARGUMENTS[name])}"):
    module_of(path).get_config("nothing")


def test_the_tuned_model_matches_the_initial_run():
  """Compares the models' calls, except for the image size and context length."""
  for name in ("flip", "clipa"):
    for settings in ("study", "paper"):
      first, tuned = (
        module_of(p).get_config(settings).model.to_dict()
        for p in CONFIGS
        if p.stem in (name, f"{name}_tuning")
      )
      for config in (first, tuned):
        del config["image"]["image_size"], config["text"]["context_length"]
      assert first == tuned


@pytest.mark.parametrize("name", make_configs.names())
def test_the_values_of_a_config_are_those_stored(name):
  path = make_configs.FOLDER / f"{name}.json"
  before = path.read_text() if path.is_file() else ""
  changes = list(
    difflib.unified_diff(
      before.splitlines(), make_configs.text(name).splitlines(), "stored", "now", lineterm="", n=1
    )
  )
  listed = "\n".join(changes[:40])
  assert not changes, (
    f"Values of configs/{name}.py changed. If they should, run python tests/golden/make_configs.py "
    f"and review its changes.\n{listed}"
  )


def test_no_values_are_stored_of_configs_that_are_gone():
  stored = {
    str(path.relative_to(make_configs.FOLDER).with_suffix(""))
    for path in make_configs.FOLDER.rglob("*.json")
  }
  assert stored == set(make_configs.names())
