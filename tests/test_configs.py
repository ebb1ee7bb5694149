"""Every config is built, and a step of it traced at full size."""

import importlib.util
from pathlib import Path

import jax
import pytest

from clip_jax import parts
from clip_jax.config import from_json, to_json

CONFIGS = sorted(path for path in (Path(__file__).parent.parent / "configs").rglob("*.py")
                 if path.parent.name != "evaluations")  # These are in test_evaluate.py.


def config_of(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(), module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_built_and_its_step_traced(path):
  config, _ = config_of(path)
  made = parts.prepare(from_json(to_json(config)))
  with jax.set_mesh(made.mesh):
    state, metrics = jax.eval_shape(made.train_step, made.state, made.batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
      lambda x: (x.shape, x.dtype), made.state)
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_says_how_it_is_run_on_what_and_what_to_expect(path):
  text = config_of(path)[1].__doc__
  for word in ("python -m clip_jax.train --config=configs/", "cores", "min", "R@10"):
    assert word in text, f"the header of {path.name} does not say {word!r}"
