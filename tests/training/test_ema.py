"""The moving average of the parameters: its values, and where it is used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.cli.config_files import load_function
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.setup import build_setup
from clip_jax.training.step import moving_average
from tiny import largest_difference


def test_the_average_follows_its_formula():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(30, 3))
  average, expected = {"a": jnp.zeros(3)}, np.zeros(3)
  for t, x in enumerate(values):
    average = moving_average(average, {"a": jnp.asarray(x, jnp.float32)}, 0.6, jnp.int32(t))
    kept = min(0.6, (1 + t) / (10 + t))
    expected = kept * expected + (1 - kept) * x
  np.testing.assert_allclose(average["a"], expected, rtol=1e-5)
  assert moving_average({}, {"a": 1}, None, jnp.int32(0)) == {}


def test_a_run_evaluates_and_loads_its_average(tmp_path):
  path = Path(__file__).parents[1] / "run_config.py"
  config = load_function(f"{path}:3", "get_config")()
  config.evaluators, config.final_evaluators = {}, {}
  config.train.ema_decay, config.train.evaluate_ema = 0.9, True
  config.optimizer.freeze_params = ("model/image/embedding/.*",)
  assert clip_jax.run(config, tmp_path) == 0
  setup = build_setup(config)
  with jax.set_mesh(setup.mesh):
    state = Checkpoints(tmp_path / "checkpoints").restore(setup.state)
  assert largest_difference(state.ema["model"]["text"], state.params["model"]["text"]) > 1e-5
  assert "embedding" not in state.ema["model"]["image"]
  loaded = leaves_by_name(split_state(clip_jax.load(tmp_path).model)[1])
  average = leaves_by_name(state.ema["model"])
  for name, x in loaded.items():
    want = average.get(name, leaves_by_name(state.params["model"])[name])
    np.testing.assert_array_equal(x, want, err_msg=name)


def test_evaluating_an_average_needs_one():
  path = Path(__file__).parents[1] / "run_config.py"
  config = load_function(f"{path}:3", "get_config")()
  config.train.evaluate_ema = True
  with pytest.raises(UserError, match="needs a moving average. Set --config.train.ema_decay"):
    build_setup(config)
