"""Schedule-free AdamW against its algorithm in NumPy and against optax's; its bounds and checks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clip_jax
from clip_jax.cli.config_files import load_function
from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.experiment import Training
from clip_jax.training.optim import adamw, with_bounds
from clip_jax.training.schedule_free import schedule_free_adamw
from clip_jax.training.schedules import warmup_constant
from clip_jax.training.setup import build_setup, check_average

LR, B1, B2, EPS, WD = 0.05, 0.9, 0.98, 1e-6, 0.2
RNG = np.random.default_rng(0)
PARAMS = {"a": {"kernel": np.float32(RNG.normal(size=(3, 4)))}, "scale": np.float32(1.5)}
GRADIENTS = [jax.tree.map(lambda p: np.float32(RNG.normal(size=p.shape)), PARAMS) for _ in range(6)]


def updated(optimizer, average):
  """The parameters and their average after all gradients."""
  params, state = PARAMS, optimizer.init(PARAMS)
  update = jax.jit(optimizer.update)
  for g in GRADIENTS:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params, average(state, params), state


def by_hand(p, gradients, schedule, decay):
  z, x, v, total, largest = p, p, np.zeros_like(p), 0.0, 0.0
  for t, g in enumerate(gradients, start=1):
    y = (1 - B1) * z + B1 * x
    v = B2 * v + (1 - B2) * g**2
    z = z - LR * schedule(t - 1) * (g / (np.sqrt(v / (1 - B2**t)) + EPS) + WD * decay * y)
    largest = max(largest, schedule(t - 1))
    total += largest**2
    x = x + largest**2 / total * (z - x)
  return (1 - B1) * z + B1 * x, x


def test_it_follows_the_published_algorithm_during_a_warm_up():
  schedule = warmup_constant(warmup=4, total_steps=20)
  optimizer = schedule_free_adamw(learning_rate=LR, schedule=schedule)
  params, average, _ = updated(optimizer, optimizer.average)
  factor = lambda t: min(1, (t + 1) / 4)
  for pick, decay in ((lambda t: t["a"]["kernel"], 1), (lambda t: t["scale"], 0)):
    gradients = [np.float64(pick(g)) for g in GRADIENTS]
    y, x = by_hand(np.float64(pick(PARAMS)), gradients, factor, decay)
    np.testing.assert_allclose(pick(params), y, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pick(average), x, rtol=1e-4, atol=1e-6)


def test_it_is_that_of_optax_at_a_constant_rate():
  ours = schedule_free_adamw(learning_rate=LR, schedule=lambda _: jnp.float32(1), weight_decay=0.0)
  theirs = optax.contrib.schedule_free_adamw(LR, b1=B1, b2=B2, eps=EPS)
  for one, other in zip(
    jax.tree.leaves(updated(ours, ours.average)[:2]),
    jax.tree.leaves(updated(theirs, optax.contrib.schedule_free_eval_params)[:2]),
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_all_points_stay_within_bounds_and_can_leave_them():
  inner = schedule_free_adamw(
    learning_rate=0.3, schedule=lambda _: jnp.float32(1), weight_decay=0.0
  )
  optimizer = with_bounds(inner, {"a": (-np.inf, np.inf), "b": (0.0, 2.0)})
  params = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for push, reached in ((-1.0, 2.0), (1.0, 0.0)):
    for _ in range(40):
      g = jnp.float32(push)
      updates, state = update({"a": g, "b": g}, state, params)
      params = optax.apply_updates(params, updates)
      average = optimizer.average(state, params)
      for point in (params["b"], state.fast["b"], average["b"]):
        assert -1e-6 <= point <= 2 + 1e-6
    assert state.fast["b"] == pytest.approx(reached)
  assert abs(params["a"]) > 2


def test_the_average_must_be_evaluated_and_be_the_only_one():
  schedule = lambda _: jnp.float32(1)
  free = schedule_free_adamw(learning_rate=LR, schedule=schedule)
  assert check_average(Training(steps=3, evaluate_ema=True), free)
  with pytest.raises(UserError, match="Set --config.train.evaluate_ema=True"):
    check_average(Training(steps=3), free)
  with pytest.raises(UserError, match="no second average"):
    check_average(Training(steps=3, evaluate_ema=True, ema_decay=0.9), free)
  assert not check_average(Training(steps=3), adamw(learning_rate=LR, schedule=schedule))


@pytest.mark.slow
def test_a_run_evaluates_and_loads_the_average(tmp_path):
  path = Path(__file__).parents[1] / "run_config.py"
  config = load_function(f"{path}:3", "get_config")()
  config.evaluators, config.final_evaluators = {}, {}
  config.optimizer = call(
    schedule_free_adamw, learning_rate=1e-3, schedule=call(warmup_constant, warmup=1)
  )
  config.train.evaluate_ema = True
  assert clip_jax.run(config, tmp_path) == 0
  setup = build_setup(config)
  with jax.set_mesh(setup.mesh):
    state = Checkpoints(tmp_path / "checkpoints").restore(setup.state)
  loaded = leaves_by_name(split_state(clip_jax.load(tmp_path).model)[1])
  wanted = leaves_by_name(setup.optimizer.average(state.opt_state, state.params)["model"])
  for name, x in loaded.items():
    np.testing.assert_allclose(x, wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)
