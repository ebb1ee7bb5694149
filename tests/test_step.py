"""The step beyond what objectives show: keys, augmentation, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax import step as step_lib
from clip_jax.config import call
from clip_jax.model import split
from clip_jax.objectives.slip import Slip
from tiny import batch, largest_difference, learner


class Darker:
  """Halves the pixels of about half of the images."""

  def __call__(self, image, key):
    half = jax.vmap(jax.random.bernoulli)(key)
    return image / 255.0 * jnp.where(half, 0.5, 1.0)[:, None, None, None]


def test_keys_depend_on_seed_step_and_row_alone():
  keys = lambda seed, step, B: np.asarray(jax.random.key_data(
      step_lib.example_keys(seed, jnp.int32(step), B)))
  np.testing.assert_array_equal(keys(0, 5, 16)[:4], keys(0, 5, 4))
  assert len({tuple(k) for k in np.concatenate([keys(s, t, 8) for s in (0, 1) for t in (5, 6)])}) == 32


def test_augmentation_is_the_same_in_pieces():
  made, optimizer = learner(), optax.sgd(0.1)
  after = []
  for microbatches in (1, 4):
    step = jax.jit(step_lib.make_train_step(split(made)[0], optimizer, seed=0,
                                            augment={"image": Darker()}, microbatches=microbatches))
    after.append(step(step_lib.create(made, optimizer), batch(8))[0].params)
  plain = jax.jit(step_lib.make_train_step(split(made)[0], optimizer, seed=0))(
      step_lib.create(made, optimizer), batch(8))[0].params
  assert largest_difference(*after) < 1e-5
  assert largest_difference(after[0], plain) > 1e-3


def test_two_views_of_an_image_are_not_augmented_alike():
  """The same class on both, and the same image in both: they must still become different."""
  seen = []

  class Seeing(Darker):
    def __call__(self, image, key):
      x = super().__call__(image, key)
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
      return x

  made, optimizer = learner(call(Slip, hidden=8, outputs=4, dtype="float32")), optax.sgd(0.1)
  data = batch(16)
  data["view_b"] = data["view_a"]
  step = step_lib.make_train_step(split(made)[0], optimizer, seed=0,
                                  augment={"view_a": Seeing(), "view_b": Seeing()})
  jax.jit(step)(step_lib.create(made, optimizer), data)
  jax.effects_barrier()
  original = data["view_a"] / 255.0
  darker = [np.abs(x - original).max((1, 2, 3)) > 0.1 for x in seen]
  assert len(darker) == 2 and 0 < (darker[0] != darker[1]).sum() < 16


def test_a_step_counts_itself_and_keeps_the_other_arrays():
  made, optimizer = learner(), optax.sgd(0.0)
  state = step_lib.create(made, optimizer)
  after, metrics = jax.jit(step_lib.make_train_step(split(made)[0], optimizer, seed=0))(
      state, batch(8))
  assert int(after.step) == 1
  assert largest_difference(after.params, state.params) == 0
  assert metrics["gradient_norm"] > 0
  assert set(metrics) == {"loss", "gradient_norm", "clip/scale", "clip/image_to_text_accuracy",
                          "clip/text_to_image_accuracy"}


def test_the_step_is_compiled_once():
  made, optimizer = learner(), optax.adam(1e-3)
  step = jax.jit(step_lib.make_train_step(split(made)[0], optimizer, seed=0), donate_argnums=0)
  state = step_lib.create(made, optimizer)
  for i in range(3):
    state, _ = step(state, batch(8, seed=i))
  assert step._cache_size() == 1
