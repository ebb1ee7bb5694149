"""Properties that hold for every objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import call
from clip_jax.model.learner import param_bounds, split_state
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.flip import flip
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.hog import Hog
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.optim import with_bounds
from tiny import LENGTH, SIZE, VOCABULARY, batch, image_tower, largest_difference, learner

SMALL = dict(projection_hidden_dim=32, outputs=16, dtype="float32")
OBJECTIVES = {
  "clip": call(Clip),
  "flip-blockwise": call(flip, chunk_size=4),
  "siglip": call(Siglip),
  "siglip-masked-blockwise": call(Siglip, keep_patches=0.75, chunk_size=8),
  "slip": call(Slip, **SMALL),
  "slip-masked-blockwise": call(
    Slip,
    pairs=call(Siglip, keep_patches=0.5, chunk_size=4),
    keep_patches=0.75,
    chunk_size=8,
    **SMALL,
  ),
}
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2)]  # data, fsdp, tensor
B = 16


def trained(objective, *, mesh=None, microbatches=1, steps=3, optimizer=None, **model):
  """The state and the losses after a few optimizer steps, on a mesh or on one device."""
  optimizer = optimizer or optax.sgd(0.1)
  made = learner(objective, **model)
  graphdef = split_state(made)[0]
  step = step_lib.make_train_step(graphdef, optimizer, seed=3, microbatches=microbatches)
  state = state_lib.init_train_state(made, optimizer)
  losses = []
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    state = jax.device_put(state, partition.state_shardings(state, mesh, min_size=64))
    step = jax.jit(step, donate_argnums=0)
    for i in range(steps):
      state, metrics = step(
        state, placement.to_global(batch(B, seed=i), placement.batch_sharding(mesh))
      )
      losses.append(float(metrics["loss"]))
  return jax.device_get(state), losses


@pytest.fixture(scope="module", params=OBJECTIVES)
def plain(request):
  """An objective, and the result of three plain steps on one device."""
  return OBJECTIVES[request.param], trained(OBJECTIVES[request.param])


def check_same(one, other):
  """Asserts that losses, parameters and running averages of two runs agree up to rounding."""
  (state, losses), (their_state, their_losses) = one, other
  np.testing.assert_allclose(their_losses, losses, rtol=1e-5)
  assert largest_difference(their_state.params, state.params) < 2e-6
  if state.stats:
    assert largest_difference(their_state.stats, state.stats) < 4e-6


def test_microbatches_match_one_batch(plain):
  objective, result = plain
  check_same(result, trained(objective, microbatches=4))


def test_eight_devices_match_one(plain):
  objective, result = plain
  check_same(result, trained(objective, mesh=mesh_lib.make_mesh(2, 2, 2)))


def test_every_mesh_shape_matches_one_device():
  result = trained(OBJECTIVES["flip-blockwise"])
  for sizes in MESHES:
    check_same(result, trained(OBJECTIVES["flip-blockwise"], mesh=mesh_lib.make_mesh(*sizes)))


def test_towers_for_small_data_match_on_eight_devices():
  model = dict(
    image=call(ConcatTowers, towers=(image_tower(), call(Hog, image_size=SIZE))),
    text=call(BagOfTokens, vocab_size=VOCABULARY, context_length=LENGTH, width=32),
    image_projection="mlp",
    projection_hidden_dim=64,
  )
  check_same(
    trained(call(Clip), **model), trained(call(Clip), mesh=mesh_lib.make_mesh(2, 2, 2), **model)
  )


def test_microbatches_on_eight_devices_match_one():
  objective = OBJECTIVES["slip-masked-blockwise"]
  check_same(trained(objective), trained(objective, mesh=mesh_lib.make_mesh(8, 1), microbatches=2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_overfits_one_batch(name):
  made = learner(OBJECTIVES[name])
  optimizer = with_bounds(optax.adam(3e-3), param_bounds(made))
  step = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))
  state, data = state_lib.init_train_state(made, optimizer), batch(B)
  state, first = step(state, data)
  for _ in range(60):
    state, last = step(state, data)
  assert last["loss"] < 0.2 * first["loss"]


def test_scale_stops_at_its_bound_and_can_leave_it():
  made = learner(call(Clip, max_scale=20.0))
  optimizer = with_bounds(optax.sgd(1.0), param_bounds(made))
  _, params, _ = split_state(made)
  at = lambda params: float(jnp.exp(params["objective"]["log_scale"]))
  push = jax.tree.map(jnp.zeros_like, params)
  push["objective"]["log_scale"] = jnp.float32(-5.0)
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update(push, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(at(params), 20.0, rtol=1e-6)
  push["objective"]["log_scale"] = jnp.float32(0.5)
  updates, state = optimizer.update(push, state, params)
  np.testing.assert_allclose(at(optax.apply_updates(params, updates)), 20 * np.exp(-0.5), rtol=1e-5)


def test_initial_scale_and_bounds_are_those_of_clip():
  made = learner()
  np.testing.assert_allclose(jnp.exp(made.objective.log_scale[...]), 1 / 0.07, rtol=1e-6)
  assert param_bounds(made)["objective"]["log_scale"] == (0.0, pytest.approx(np.log(100)))


def test_evaluation_uses_all_patches():
  made = learner(call(Clip, keep_patches=0.5))
  data = batch(B)
  z = made.objective.embed(made.model, data, train=False, key=None)
  np.testing.assert_allclose(z["image"], made.model.encode_image(data["image"]), atol=1e-6)
