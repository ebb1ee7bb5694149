"""The train step: random keys, augmentation, skipped steps and diagnosis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.config import call
from clip_jax.model.learner import split_state
from clip_jax.objectives.slip import Slip
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.optim import Optimizer
from tiny import batch, largest_difference, learner


class Darker:
  """Halves the pixels of about half of the images."""

  def __call__(self, image, key):
    half = jax.vmap(jax.random.bernoulli)(key)
    return image / 255.0 * jnp.where(half, 0.5, 1.0)[:, None, None, None]


def test_keys_depend_only_on_seed_step_and_row():
  keys = lambda seed, step, B: np.asarray(
    jax.random.key_data(step_lib.example_keys(seed, jnp.int32(step), B))
  )
  np.testing.assert_array_equal(keys(0, 5, 16)[:4], keys(0, 5, 4))
  drawn = np.concatenate([keys(s, t, 8) for s in (0, 1) for t in (5, 6)])
  assert len({tuple(key) for key in drawn}) == 32


def test_augmentation_does_not_depend_on_microbatches():
  made, optimizer = learner(), optax.sgd(0.1)
  after = []
  for microbatches in (1, 4):
    step = jax.jit(
      step_lib.make_train_step(
        split_state(made)[0],
        optimizer,
        seed=0,
        augment={"image": Darker()},
        microbatches=microbatches,
      )
    )
    after.append(step(state_lib.init_train_state(made, optimizer), batch(8))[0].params)
  plain = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))(
    state_lib.init_train_state(made, optimizer), batch(8)
  )[0].params
  assert largest_difference(*after) < 1e-5
  assert largest_difference(after[0], plain) > 1e-3


def test_two_views_of_an_image_are_augmented_differently():
  """Both views hold the same image and use the same augmentation."""
  seen = []

  class Seeing(Darker):
    def __call__(self, image, key):
      x = super().__call__(image, key)
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
      return x

  made, optimizer = (
    learner(call(Slip, projection_hidden_dim=8, outputs=4, dtype="float32")),
    optax.sgd(0.1),
  )
  data = batch(16)
  data["view_b"] = data["view_a"]
  step = step_lib.make_train_step(
    split_state(made)[0], optimizer, seed=0, augment={"view_a": Seeing(), "view_b": Seeing()}
  )
  jax.jit(step)(state_lib.init_train_state(made, optimizer), data)
  jax.effects_barrier()
  original = data["view_a"] / 255.0
  darker = [np.abs(x - original).max((1, 2, 3)) > 0.1 for x in seen]
  assert len(darker) == 2 and 0 < (darker[0] != darker[1]).sum() < 16


def test_step_counts_itself_and_returns_metrics():
  made, optimizer = learner(), optax.sgd(0.0)
  state = state_lib.init_train_state(made, optimizer)
  after, metrics = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))(
    state, batch(8)
  )
  assert int(after.step) == 1
  assert largest_difference(after.params, state.params) == 0
  assert metrics["grad_norm"] > 0
  assert set(metrics) == {
    "loss",
    "grad_norm",
    "update_norm",
    "param_norm",
    "clip/logit_scale",
    "clip/image_to_text_accuracy",
    "clip/text_to_image_accuracy",
    "skipped_steps",
  }


def test_norms_are_those_of_the_update_and_of_the_parameters_after_it():
  made, optimizer = learner(), optax.adam(1e-2)
  before = state_lib.init_train_state(made, optimizer)
  after, metrics = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))(
    before, batch(8)
  )
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float)
  moved = flat(after.params) - flat(before.params)
  np.testing.assert_allclose(metrics["update_norm"], np.linalg.norm(moved), rtol=1e-3)
  np.testing.assert_allclose(metrics["param_norm"], np.linalg.norm(flat(after.params)), rtol=1e-5)


def nonfinite(seed):
  return {**batch(8, seed), "image": np.full_like(batch(8, seed)["image"], np.nan, np.float32)}


def finite(seed):
  return {**batch(8, seed), "image": batch(8, seed)["image"] / np.float32(255)}


def test_nonfinite_step_freezes_the_last_good_state():
  made, optimizer = learner(), optax.adam(1e-2)
  step = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))
  good, _ = step(state_lib.init_train_state(made, optimizer), finite(0))
  state, metrics = step(good, nonfinite(1))
  assert not np.isfinite(metrics["loss"]) and int(metrics["skipped_steps"]) == 1
  for later in (finite(2), nonfinite(3), finite(4)):
    state, metrics = step(state, later)
  assert int(state.step) == 1 and int(state.skipped) == int(metrics["skipped_steps"]) == 1
  for name in ("params", "opt_state"):
    assert largest_difference(getattr(state, name), getattr(good, name)) == 0


def test_skipped_steps_have_no_effect_up_to_the_allowance():
  made, optimizer = learner(), optax.adam(1e-2)
  step = jax.jit(
    step_lib.make_train_step(split_state(made)[0], optimizer, seed=0, skip_nonfinite=2)
  )
  after = {}
  for name, batches in {
    "without": [finite(0), finite(2)],
    "with": [nonfinite(1), finite(0), nonfinite(1), finite(2)],
  }.items():
    state = state_lib.init_train_state(made, optimizer)
    for one in batches:
      state, _ = step(state, one)
    after[name] = state
    assert int(state.step) == len(batches)
  assert largest_difference(after["with"].params, after["without"].params) == 0
  assert largest_difference(after["with"].opt_state, after["without"].opt_state) == 0
  assert int(after["with"].skipped) == 2
  frozen, _ = step(step(after["with"], nonfinite(5))[0], finite(6))
  assert int(frozen.skipped) == 3 and int(frozen.step) == 4
  assert largest_difference(frozen.params, after["with"].params) == 0


def test_logged_learning_rate_is_the_one_used_after_skipped_steps():
  made, rates = learner(), np.float32([0.3, 0.2, 0.1])
  schedule = lambda step: jnp.asarray(rates)[step]
  optimizer = Optimizer(*optax.sgd(schedule), schedule)
  step = jax.jit(
    step_lib.make_train_step(split_state(made)[0], optimizer, seed=0, skip_nonfinite=1)
  )
  state, logged = state_lib.init_train_state(made, optimizer), []
  for one in (finite(0), nonfinite(1), finite(2)):
    before = state
    state, metrics = step(state, one)
    logged.append(float(metrics["learning_rate"]))
  np.testing.assert_allclose(logged, rates[[0, 1, 1]])
  # The update of gradient descent is the gradient times the learning rate.
  moved = optax.global_norm(jax.tree.map(lambda a, b: a - b, state.params, before.params))
  np.testing.assert_allclose(moved / metrics["grad_norm"], logged[-1], rtol=1e-3)


def test_diagnosis_has_the_gradient_norm_of_each_part():
  made, optimizer = learner(), optax.sgd(1.0)
  state = state_lib.init_train_state(made, optimizer)
  found = jax.jit(step_lib.make_diagnosis(split_state(made)[0], seed=0))(state, batch(8))
  after, metrics = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))(
    state, batch(8)
  )
  # With a learning rate of 1, the update of gradient descent is the gradient.
  gradient = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, after.params)
  norm = lambda tree: float(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))
  assert found.keys() == {"loss", "objective", *gradient["model"]}
  for name in gradient["model"]:
    np.testing.assert_allclose(found[name], norm(gradient["model"][name]), rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
  parts = [value for name, value in found.items() if name != "loss"]
  np.testing.assert_allclose(norm(parts), metrics["grad_norm"], rtol=1e-4)


def test_step_compiles_once():
  made, optimizer = learner(), optax.adam(1e-3)
  step = jax.jit(
    step_lib.make_train_step(split_state(made)[0], optimizer, seed=0), donate_argnums=0
  )
  state = state_lib.init_train_state(made, optimizer)
  for i in range(3):
    state, _ = step(state, batch(8, seed=i))
  assert step._cache_size() == 1
