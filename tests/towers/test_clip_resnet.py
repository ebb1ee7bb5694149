"""OpenAI's ResNet: its sizes and BatchNorm's running averages.

Golden tests compare its features with OpenAI's.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.towers.clip_resnet import SIZES, BatchNorm, ClipResnet, average_pool


def small(**changes):
  return call(
    ClipResnet,
    **{**dict(stages=(1,), width=4, num_heads=2, image_size=(16, 24), dtype="float32"), **changes},
  )


def pixels(B=4):
  return np.random.default_rng(0).normal(size=(B, 16, 24, 3)).astype(np.float32)


@pytest.mark.parametrize(
  "size, parameters",
  [
    # The image encoders of open_clip's models with these names.
    ("RN50", 38_316_896),
    ("RN101", 56_259_936),
    ("RN50x64", 420_380_352),
  ],
)
def test_sizes_have_the_published_number_of_parameters(size, parameters):
  embed = dict(RN50=1024, RN101=512, RN50x64=1024)[size]
  tower = jax.eval_shape(
    lambda key: build(call(ClipResnet, size=size), rngs=nnx.Rngs(key)), jax.random.key(0)
  )
  count = sum(x.size for x in jax.tree.leaves(nnx.state(tower, nnx.Param)))
  # The output projection of the attention pool belongs to our model, not the tower.
  assert count + (tower.width + 1) * embed == parameters
  assert tower.image_size == (SIZES[size][2],) * 2


def test_batch_norm_normalises_and_updates_running_averages():
  x = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 2)).astype(np.float32)
  norm = BatchNorm(2, scale=2.0)
  norm.bias[...] = jnp.float32([1, -1])
  y = np.asarray(norm(x, train=True))
  for c in range(2):
    values = x[..., c].astype(np.float64)
    expected = 2 * (values - values.mean()) / np.sqrt(values.var() + 1e-5) + (1, -1)[c]
    np.testing.assert_allclose(y[..., c], expected, atol=1e-4)
    np.testing.assert_allclose(norm.mean[c], 0.1 * values.mean(), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[c], 0.9 + 0.1 * values.var(ddof=1), rtol=1e-5)
  still = np.asarray(norm(x, train=False))
  expected = 2 * (x - norm.mean[...]) / np.sqrt(norm.variance[...] + 1e-5) + np.float32([1, -1])
  np.testing.assert_allclose(still, expected, atol=1e-4)


def test_pooling_averages_two_by_two():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  y = np.asarray(average_pool(jnp.asarray(x)))
  assert y.shape == (2, 2, 3, 3)
  np.testing.assert_allclose(y[1, 1, 2], x[1, 2:4, 4:6].mean((0, 1)))


def gradients(remat):
  tower = build(small(remat=remat), rngs=nnx.Rngs(0))
  graphdef, params, stats = split_state(tower)

  def loss(params):
    tower = nnx.merge(graphdef, params, stats)
    return jnp.square(tower(pixels(), train=True)).sum(), split_state(tower)[2]

  (value, stats), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return value, stats, gradient


def test_remat_changes_neither_gradients_nor_running_averages():
  plain, remat = gradients("none"), gradients("full")
  for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  changed = [float(abs(x - round(float(x.mean()))).max()) for x in jax.tree.leaves(plain[1])]
  assert all(change > 1e-5 for change in changed)


def test_bfloat16_and_images_that_are_not_square():
  tower = build(small(dtype="bfloat16"), rngs=nnx.Rngs(0))
  apply = jax.jit(lambda tower, x: tower(x))
  z = apply(tower, pixels())
  assert z.shape == (4, tower.width) == (4, 16)
  assert z.dtype == jnp.float32  # On a CPU, products in bfloat16 return float32.
  exact = apply(build(small(), rngs=nnx.Rngs(0)), pixels())
  np.testing.assert_allclose(z.astype(jnp.float32), exact, atol=0.15)


def test_invalid_arguments_are_reported():
  with pytest.raises(UserError, match="size is 'RN34'; ClipResnet expects 'RN50', 'RN101'"):
    build(small(size="RN34"), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="by 4, but 18 x 24 is not divisible.*valid height: 16"):
    build(small(image_size=(18, 24)), rngs=nnx.Rngs(0))
  tower = build(small(), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="drops patches, but a ResNet has none"):
    tower(pixels(), keep=0.5)
  with pytest.raises(UserError, match="expected images of 16 x 24, but got 24 x 16"):
    tower(pixels().swapaxes(1, 2))
