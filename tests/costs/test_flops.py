"""Counts of multiply-adds compared with formulas, and with the published figure for a ViT-B/32."""

import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import pytest

from clip_jax.costs.flops import count_multiply_adds, count_parameters
from clip_jax.errors import UserError

shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_matrix_product():
  assert count_multiply_adds(jnp.matmul, shape(3, 5), shape(5, 7)) == 3 * 5 * 7


def test_batched_product():
  assert count_multiply_adds(jnp.matmul, shape(4, 3, 5), shape(4, 5, 7)) == 4 * 3 * 5 * 7
  product = lambda x, y: jnp.einsum("bnhd,bmhd->bhnm", x, y)
  assert count_multiply_adds(product, shape(2, 9, 4, 8), shape(2, 11, 4, 8)) == 2 * 4 * 9 * 11 * 8


def test_products_at_highest_precision_are_weighted():
  exact = lambda x, y: jnp.matmul(x, y, precision=lax.Precision.HIGHEST) @ y
  assert count_multiply_adds(exact, shape(3, 5), shape(5, 5)) == 2 * 75
  assert count_multiply_adds(exact, shape(3, 5), shape(5, 5), float32_weight=6) == 7 * 75


def test_elementwise_work_is_not_counted():
  assert count_multiply_adds(lambda x: jax.nn.softmax(x * x + 1).sum(), shape(100, 100)) == 0


def convolution(stride=1, groups=1, padding="SAME"):
  return lambda x, w: lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (4, 1), (1, 4), (2, 8)])
def test_convolution_counts_kernel_size_per_output(stride, groups):
  count = count_multiply_adds(
    convolution(stride, groups), shape(2, 16, 12, 8), shape(3, 5, 8 // groups, 24)
  )
  assert count == 2 * (16 // stride) * (12 // stride) * 24 * (3 * 5 * 8 // groups)


@pytest.mark.parametrize("stride, groups, size", [(1, 1, 3), (2, 1, 2), (4, 1, 4), (2, 4, 2)])
def test_each_gradient_of_a_convolution_costs_as_much_as_the_convolution(stride, groups, size):
  """With stride 1, or a kernel as long as the stride: inserted zeros are not counted."""
  x, w = shape(2, 16, 16, 8), shape(size, size, 8 // groups, 24)
  f = convolution(stride, groups)
  gradient = jax.value_and_grad(lambda x, w: jnp.sin(f(x, w)).sum(), (0, 1))
  assert count_multiply_adds(gradient, x, w) == 3 * count_multiply_adds(f, x, w)


def test_scan_is_multiplied_by_its_length():
  def deep(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, None, length=6)[0]

  assert count_multiply_adds(deep, shape(3, 5), shape(5, 5)) == 6 * 3 * 5 * 5
  stacked = lambda x, w: lax.scan(lambda x, w: (deep(x, w), None), x, w)[0]
  assert count_multiply_adds(stacked, shape(3, 5), shape(4, 5, 5)) == 4 * 6 * 3 * 5 * 5


def test_loop_with_fixed_bounds_counts_and_one_without_is_an_error():
  body = lambda _, x: x @ x
  assert count_multiply_adds(lambda x: lax.fori_loop(0, 4, body, x), shape(5, 5)) == 4 * 125
  with pytest.raises(UserError, match="products in a while loop.*Use jax.lax.scan"):
    count_multiply_adds(
      lambda x: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), shape(5, 5)
    )


def test_while_loop_without_products_is_free():
  count = lambda x: lax.while_loop(lambda n: n < 9, lambda n: n + 1, 0) + x @ x
  assert count_multiply_adds(count, shape(5, 5)) == 125


def test_conditional_counts_as_its_most_expensive_branch():
  f = lambda x, i: lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)
  assert count_multiply_adds(f, shape(5, 5), jax.ShapeDtypeStruct((), jnp.int32)) == 2 * 125


def test_calls_of_every_kind_are_counted():
  @jax.custom_vjp
  def square(x):
    return x @ x

  square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

  @jax.custom_jvp
  def cube(x):
    return x @ x @ x

  cube.defjvp(lambda x, t: (cube(*x), t[0]))
  x = shape(5, 5)
  assert count_multiply_adds(jax.jit(jnp.matmul), x, x) == 125
  assert count_multiply_adds(jax.checkpoint(jnp.matmul), x, x) == 125
  assert count_multiply_adds(square, x) == 125
  assert count_multiply_adds(cube, x) == 2 * 125
  assert count_multiply_adds(jax.value_and_grad(lambda x: square(x).sum()), x) == 3 * 125
  assert count_multiply_adds(jax.vmap(square), shape(7, 5, 5)) == 7 * 125


def test_shard_map_counts_all_devices():
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  split = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(jax.P("data"), jax.P()),
    out_specs=jax.P("data"),
    axis_names={"data"},
  )
  assert count_multiply_adds(jax.jit(split), shape(8, 5), shape(5, 7)) == 8 * 5 * 7


def test_pallas_kernel_counts_once_per_grid_point():
  def kernel(x, y, out):
    out[...] = x[...] @ y[...]

  blocked = pl.pallas_call(
    kernel,
    grid=(4,),
    out_shape=shape(32, 16),
    in_specs=[pl.BlockSpec((8, 5), lambda i: (i, 0)), pl.BlockSpec((5, 16), lambda i: (0, 0))],
    out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
  )
  assert count_multiply_adds(blocked, shape(32, 5), shape(5, 16)) == 32 * 5 * 16


def chain(x, weights):
  for w in weights:
    x = jnp.sin(x @ w)
  return x.sum()


def test_gradient_costs_twice_the_forward_pass():
  x, weights = shape(16, 8), [shape(8, 32), shape(32, 64), shape(64, 4)]
  forward = count_multiply_adds(chain, x, weights)
  assert forward == 16 * (8 * 32 + 32 * 64 + 64 * 4)
  assert count_multiply_adds(jax.value_and_grad(chain, (0, 1)), x, weights) == 3 * forward
  # The first layer needs no gradient of its constant input.
  assert count_multiply_adds(jax.value_and_grad(chain, 1), x, weights) == 3 * forward - 16 * 8 * 32


def test_rematerialisation_counts_again():
  x, weights = shape(16, 8), [shape(8, 8)] * 3
  forward = count_multiply_adds(chain, x, weights)
  again = jax.value_and_grad(jax.checkpoint(chain), (0, 1))
  # The last product is not recomputed, because no gradient needs its output.
  assert 3 * forward < count_multiply_adds(again, x, weights) <= 4 * forward


def vit(image, patch, positions, blocks):
  """The matrix products of a ViT, with little in between."""
  B = image.shape[0]
  x = lax.conv_general_dilated(
    image, patch, (32, 32), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  x = jnp.concatenate([jnp.zeros((B, 1, 768)), x.reshape(B, -1, 768)], axis=1) + positions

  def block(x, w):
    q, k, v = jnp.einsum("bnd,dthe->tbnhe", x, w["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bnhe,bmhe->bhnm", q, k))
    x = x + jnp.einsum("bhnm,bmhe,hed->bnd", weights, v, w["out"])
    return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

  return lax.scan(block, x, blocks)[0][:, 0]


def test_vit_b_32_takes_4_41_billion():
  blocks = {
    "qkv": shape(12, 768, 3, 12, 64),
    "out": shape(12, 12, 64, 768),
    "up": shape(12, 768, 3072),
    "down": shape(12, 3072, 768),
  }
  arguments = shape(1, 224, 224, 3), shape(32, 32, 3, 768), shape(50, 768), blocks
  count = count_multiply_adds(vit, *arguments)
  N = 50
  assert count == 49 * 3072 * 768 + 12 * (N * 12 * 768**2 + 2 * N * N * 768)
  assert math.isclose(count, 4.41e9, rel_tol=0.01)
  assert count_parameters(arguments[1:]) == 3072 * 768 + 50 * 768 + 12 * 12 * 768**2


def test_parameters_counts_elements_of_arrays_and_shapes():
  assert (
    count_parameters({"a": jnp.zeros((3, 4)), "b": [jnp.zeros(()), shape(5, 2)]}) == 12 + 1 + 10
  )


def test_cudnn_attention_counts_its_products(monkeypatch):
  monkeypatch.setattr(
    "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
  )
  q, k = (jax.ShapeDtypeStruct((2, N, 3, 8), jnp.bfloat16) for N in (16, 24))

  def counts(kind):
    attend = functools.partial(jax.nn.dot_product_attention, implementation=kind)
    loss = lambda *x: attend(*x).astype(jnp.float32).sum()
    return count_multiply_adds(attend, q, k, k), count_multiply_adds(
      jax.grad(loss, (0, 1, 2)), q, k, k
    )

  product = 2 * 3 * 16 * 24 * 8
  assert counts("cudnn") == (2 * product, 7 * product)
  assert counts("xla") == (2 * product, 6 * product)  # XLA saves the attention weights.
