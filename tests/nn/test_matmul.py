"""Products in bfloat16 on a CPU against float64 NumPy, on one device and on eight."""

from flax import nnx
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import ml_dtypes
import numpy as np
import pytest

from clip_jax.nn import transformer
from clip_jax.nn.attention import attention, softmax_attention
from clip_jax.nn.matmul import activation_dtype, matmul_f32_grad
from tiny import chips


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x):
  """To bfloat16 and back, in float64."""
  return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)


def mesh(devices):
  return jax.make_mesh(
    (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )


def value_and_gradients(f, g, devices, *x):
  """Value and gradients of f at x, compiled, with the first axes of x and g sharded."""
  rows = NamedSharding(mesh(devices), P("data"))
  with jax.set_mesh(rows.mesh):
    arrays = [
      jax.device_put(a, rows if len(a) % 8 == 0 else NamedSharding(rows.mesh, P())) for a in x
    ]

    def both(g, *x):
      y, gradients = jax.vjp(f, *x)
      return y, *gradients(g)

    return jax.jit(both)(jax.device_put(g, rows), *arrays)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("inputs, outputs", [((12,), (3, 4)), ((3, 4), (10,))])
def test_products_round_their_inputs_and_nothing_else(devices, inputs, outputs):
  x, kernel = normal(16, 5, *inputs), normal(*inputs, *outputs, seed=1)
  g = normal(16, 5, *outputs, seed=2)
  got = value_and_gradients(
    lambda x, kernel: matmul_f32_grad(x, kernel, len(inputs), "bfloat16"), g, devices, x, kernel
  )
  rows = lambda x: rounded(x).reshape(80, -1)
  matrix = rounded(kernel).reshape(12, -1)
  for a, b in zip(got, (rows(x) @ matrix, rows(g) @ matrix.T, rows(x).T @ rows(g)), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_allclose(np.asarray(a).reshape(b.shape), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_rounded_attention_is_attention_with_rounded_products(devices, causal):
  q, k, v, g = (normal(8, 6, 2, 4, seed=i) for i in range(4))
  mask = np.tril(np.ones((1, 1, 6, 6), bool)) if causal else None
  attend = lambda *x: attention(*x, mask, dtype="bfloat16")
  got = value_and_gradients(attend, g, devices, q, k, v)
  exact = lambda *x: softmax_attention(*x, mask)
  y, gradients = jax.vjp(exact, q, k, v)
  for a, b in zip(got, (y, *gradients(g)), strict=True):
    assert a.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 2**-6 * np.abs(b).max()


def test_towers_round_everything_on_accelerators_and_in_exports():
  assert activation_dtype("bfloat16") == "float32"
  assert activation_dtype("float16") == "float16"
  with jax.sharding.use_abstract_mesh(chips("gpu")):
    assert activation_dtype("bfloat16") == "bfloat16"
    block = transformer.Block(8, 2, 16, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert jax.eval_shape(block, jax.ShapeDtypeStruct((2, 4, 8), "bfloat16")).dtype == "bfloat16"


def test_a_step_of_blocks_in_bfloat16_differs_by_rounding_only():
  x = normal(2, 5, 8)

  def gradient(dtype):
    make = lambda rngs: transformer.Block(8, 2, 16, dtype=dtype, rngs=rngs)
    graphdef, params = nnx.split(transformer.Stack(make, 3, rngs=nnx.Rngs(1)))
    loss = lambda params: (nnx.merge(graphdef, params)(x) ** 2).sum()
    return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))

  for a, b in zip(jax.tree.leaves(gradient("bfloat16")), jax.tree.leaves(gradient("float32"))):
    assert a.dtype == np.float32
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max() + 1e-3
