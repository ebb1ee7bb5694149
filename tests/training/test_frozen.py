"""Frozen parameters cost neither a backward pass nor memory, and change nothing else."""

from flax import nnx
import jax
import numpy as np
import pytest

from clip_jax.config import call
from clip_jax.costs.flops import count_multiply_adds, count_parameters
from clip_jax.model.frozen import join_frozen, mark_frozen, replace_trained, split_frozen
from clip_jax.model.learner import split_state
from clip_jax.towers.clip_resnet import ClipResnet
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.optim import adamw
from tiny import batch, image_tower, largest_difference, learner, text_tower

B = 16
IMAGE = ("model/image/.*",)


def mark(made, params, frozen):
  within = {name.removeprefix("model/"): k for name, k in frozen.items()}
  mark_frozen(made.model, params["model"], within)


def step_of(made, microbatches=1, **changes):
  """The step, not jitted yet, and its initial state; updates are proportional to gradients."""
  optimizer = adamw(learning_rate=1e-2, schedule=lambda step: 1.0, eps=1.0, **changes)
  _graphdef, params, _ = split_state(made)
  frozen = optimizer.frozen(params)
  mark(made, params, frozen)
  step = step_lib.make_train_step(
    split_state(made)[0], optimizer, seed=0, microbatches=microbatches, frozen=frozen
  )
  return step, state_lib.init_train_state(made, optimizer)


def towers(depth=2):
  return dict(image=image_tower(depth=depth), text=text_tower(depth=depth))


def gradients(microbatches=1, **changes):
  """The compiled gradients of the trained parameters, and the loss."""
  made = learner(**towers())
  optimizer = adamw(learning_rate=1e-2, schedule=lambda step: 1.0, **changes)
  _, params, stats = split_state(made)
  frozen = optimizer.frozen(params)
  mark(made, params, frozen)
  state = state_lib.TrainState(jax.numpy.int32(0), params, stats, (), jax.numpy.int32(0))
  made = step_lib.make_gradients(
    split_state(made)[0], seed=0, microbatches=microbatches, frozen=frozen
  )
  loss, _, _, of_params = jax.jit(made)(state, batch(B))
  return float(loss), of_params


def test_splitting_and_joining():
  params = {"a": {"b": np.arange(6).reshape(3, 2), "c": np.ones(2)}, "d": {"e": np.zeros(1)}}
  frozen = {"a/b": 2, "d/e": None}
  trained, held = split_frozen(params, frozen)
  assert trained.keys() == {"a"} and held.keys() == {"a", "d"}
  np.testing.assert_array_equal(trained["a"]["b"], [[4, 5]])
  assert largest_difference(join_frozen(trained, held), params) == 0
  other = jax.tree.map(lambda x: x + 1, trained)
  after = replace_trained(jax.tree.map(jax.numpy.asarray, params), other)
  np.testing.assert_array_equal(after["a"]["b"], [[0, 1], [2, 3], [5, 6]])
  np.testing.assert_array_equal(after["d"]["e"], params["d"]["e"])


def test_the_others_have_the_gradients_that_they_have_if_nothing_is_frozen():
  """Also in microbatches, and with the last block unlocked."""
  loss, full = gradients()
  lit_loss, lit = gradients(freeze_params=IMAGE, microbatches=2)
  _, last = gradients(freeze_params=IMAGE, unlock_blocks=1)
  assert lit_loss == pytest.approx(loss, rel=1e-6)
  image = full["model"].pop("image")
  assert "image" not in lit["model"]
  assert largest_difference(lit, full) < 3e-5  # Of up to 4.4.
  unlocked = last["model"].pop("image")
  assert largest_difference(last, full) < 3e-5
  assert unlocked.keys() == {"stack", "norm"}
  assert largest_difference(unlocked["norm"], image["norm"]) < 3e-5
  blocks = jax.tree.map(lambda x: x[1:], image["stack"])
  assert largest_difference(unlocked["stack"], blocks) < 3e-5


def frozen_names(params):
  return adamw(learning_rate=1.0, schedule=lambda _: 1.0, freeze_params=IMAGE).frozen(params)


def without_image_tower(made, data):
  """The gradient of a LiT step as a function of the image tower's features; and its arguments."""
  graphdef, params, stats = split_state(made)
  features = jax.eval_shape(made.model.image_features, data["image"])

  def loss(trained, held, features, tokens):
    made = nnx.merge(graphdef, join_frozen(trained, held), stats)
    z = {"image": made.model.project_image(features), "text": made.model.encode_text(tokens)}
    return made.objective.loss(z, train=True)[0]

  parts = split_frozen(params, frozen_names(params))
  return jax.grad(loss), (*parts, features, data["tokens"])


def rest(made, data, microbatches=1):
  """Multiply-adds of a LiT step without those of the image tower."""
  gradient, arguments = without_image_tower(made, data)
  found = count_multiply_adds(gradient, *arguments)
  if microbatches > 1:  # They run the text tower and the projections once more.
    found += count_multiply_adds(made.model.encode_text, data["tokens"])
    found += count_multiply_adds(made.model.project_image, arguments[2])
  return found


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_frozen_tower_costs_its_forward_pass(microbatches):
  """At most 1.05 of it, in multiply-adds of the whole step."""
  made = learner(**towers(6))
  model, data = made.model, batch(B)
  step, state = step_of(made, microbatches=microbatches, freeze_params=IMAGE)
  forward = count_multiply_adds(model.image_features, data["image"])
  total = count_multiply_adds(step, state, data)
  assert forward <= total - rest(made, data, microbatches) <= 1.05 * forward


def test_unlocked_blocks_cost_three_passes_and_the_others_one():
  made = learner(**towers(6))
  step, state = step_of(made, freeze_params=IMAGE, unlock_blocks=2)
  data = batch(B)
  forward = count_multiply_adds(made.model.image_features, data["image"])
  image = count_multiply_adds(step, state, data) - rest(made, data)
  assert 1.5 * forward < image < 1.75 * forward  # (4 + 3 * 2) / 6 = 1.67 of the blocks.


@pytest.mark.slow
def test_a_frozen_tower_needs_no_memory_for_a_backward_pass():
  """Temporaries are at most 1.05 of those of its forward pass and of the rest of the step."""
  made = learner(image=image_tower(depth=6), text=text_tower(depth=1))
  data = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, batch(256)))
  bytes_of = lambda jitted, *arguments: (
    jitted.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
  )
  gradient, arguments = without_image_tower(made, data)
  rest = bytes_of(jax.jit(gradient), *arguments)
  forward = bytes_of(jax.jit(made.model.image_features), data["image"])
  step, state = step_of(made)
  full = bytes_of(jax.jit(step, donate_argnums=0), state, data)
  step, state = step_of(made, freeze_params=IMAGE)
  lit = bytes_of(jax.jit(step, donate_argnums=0), state, data)
  print(f"{lit=:,} {full=:,} {forward=:,} {rest=:,}")
  assert lit <= 1.05 * (forward + rest) < full


@pytest.mark.slow
def test_batch_norm_of_a_frozen_tower_keeps_its_averages():
  tower = call(ClipResnet, stages=(1, 1), width=8, image_size=32, num_heads=2, dtype="float32")
  data = batch(4)
  data["image"] = np.repeat(np.repeat(data["image"], 2, 1), 2, 2)
  step, state = step_of(learner(image=tower, text=text_tower(depth=1)), freeze_params=IMAGE)
  after = jax.eval_shape(step, state, data)[0]
  assert count_parameters(after.stats) > 0
  after, _ = jax.jit(step)(state, data)
  assert largest_difference(after.stats, state.stats) == 0
