"""Convolutions against JAX's own gradients, and kernel gradients against exact sums."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.nn.convolution import conv2d

rng = np.random.default_rng(0)


def plain(x, kernel, stride, padding, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    feature_group_count=groups,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@pytest.mark.parametrize(
  "size, stride, padding, groups",
  [
    (3, 1, "SAME", 1),
    (3, 2, "SAME", 1),
    (1, 2, "SAME", 1),
    (7, 2, "SAME", 1),
    (7, 1, "SAME", 8),
    (3, 2, "SAME", 4),
    (3, 2, ((1, 1), (1, 1)), 1),
    (4, 4, "VALID", 1),
  ],
)
@pytest.mark.parametrize("sides", [(8, 12), (9, 7)])
def test_values_and_gradients_match_lax_convolution(size, stride, padding, groups, sides):
  x = rng.normal(size=(3, *sides, 8)).astype(np.float32)
  kernel = rng.normal(size=(size, size, 8 // groups, 16)).astype(np.float32)
  results = {}
  for f in (plain, conv2d):
    y, back = jax.vjp(lambda x, k: f(x, k, stride, padding, groups), x, kernel)
    results[f] = y, *back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))
  for ours, theirs in zip(results[conv2d], results[plain]):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_kernel_gradient_is_summed_in_float32_for_bfloat16_images():
  x = jnp.asarray(rng.normal(size=(16, 8, 8, 4)), jnp.bfloat16)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32)
  g = jnp.asarray(rng.normal(size=(16, 8, 8, 8)), jnp.bfloat16)
  y, back = jax.vjp(conv2d, x, kernel)
  dx, dkernel = back(g)
  assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  expected = np.stack(
    [
      np.stack(
        [
          np.einsum("byxi,byxo->io", padded[:, h : h + 8, w : w + 8], np.asarray(g, np.float64))
          for w in range(3)
        ]
      )
      for h in range(3)
    ]
  )
  np.testing.assert_allclose(dkernel, expected, rtol=2e-5, atol=1e-3)
  rounded = jax.vjp(lambda k: plain(x, k, 1, "SAME", 1), kernel.astype(jnp.bfloat16))[1](g)[0]
  error = lambda a: np.abs(np.asarray(a, np.float64) - expected).max()
  assert error(dkernel) < 0.02 * error(rounded)
