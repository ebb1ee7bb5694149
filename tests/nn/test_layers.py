"""Layers against straightforward reference implementations."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.remat import REMAT_POLICIES
from clip_jax.nn.target import any_platform
from clip_jax.towers.resnet import GroupNorm
from tiny import largest_difference


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_matches_its_formula():
  attention = transformer.Attention(8, 2, rngs=nnx.Rngs(0))
  x = normal(3, 5, 8)
  qkv = np.asarray(attention.qkv.kernel[...])
  out = np.asarray(attention.out.kernel[...])
  expected = np.zeros_like(x)
  for b in range(3):
    for h in range(2):
      q, k, v = (x[b] @ qkv[:, i, h] for i in range(3))
      weights = np.exp(q @ k.T / np.sqrt(4))
      expected[b] += weights / weights.sum(1, keepdims=True) @ v @ out[h]
  np.testing.assert_allclose(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_parameter_gradients_are_summed_in_float32():
  layer = layers.Linear(3, (2, 4), dtype="bfloat16", rngs=nnx.Rngs(0))
  x = normal(4096, 3).astype(jnp.bfloat16)
  g = (normal(4096, 2, 4, seed=1) + 0.1).astype(jnp.bfloat16)
  loss = lambda layer: (layer(x).astype(jnp.float32) * g).sum()
  got = nnx.to_pure_dict(nnx.state(jax.jit(jax.grad(loss))(layer)))
  x, g = (np.asarray(v, np.float64) for v in (x, g))
  # Rounding to bfloat16's 8 bits alone would be an error of 2e-3.
  np.testing.assert_allclose(got["bias"], g.sum(0), rtol=1e-5, atol=1e-3)
  np.testing.assert_allclose(got["kernel"], np.einsum("bi,bjk->ijk", x, g), rtol=1e-5, atol=1e-3)


def test_masked_tokens_do_not_matter():
  attention = transformer.Attention(8, 2, rngs=nnx.Rngs(0))
  x = normal(1, 5, 8)
  mask = (np.arange(5) < 3)[None, None, None].repeat(5, axis=2)
  changed = x.copy()
  changed[:, 3:] += 1
  np.testing.assert_array_equal(attention(x, mask)[:, :3], attention(changed, mask)[:, :3])


def test_layer_norm_has_mean_zero_and_standard_deviation_one():
  x = normal(4, 16) * 5 + 3
  z = layers.LayerNorm(16)(x)
  np.testing.assert_allclose(
    z, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("unroll", [0, 2, 3])
def test_a_stack_applies_its_blocks_in_sequence(remat, unroll):
  make = lambda rngs: transformer.Block(8, 2, 16, rngs=rngs)
  stack = transformer.Stack(make, 3, remat=remat, unroll=unroll, rngs=nnx.Rngs(1))
  x = normal(2, 5, 8)

  def one_by_one(blocks, x):
    for i in range(3):
      x = jax.tree.map(lambda p: p[i], blocks)(x)
    return x

  loss = lambda blocks, x: jnp.square(one_by_one(blocks, x)).sum()
  expected = jax.value_and_grad(loss, argnums=1)(stack.blocks, x)
  got = jax.value_and_grad(lambda stack, x: jnp.square(stack(x)).sum(), argnums=1)(stack, x)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], expected[1], rtol=1e-3, atol=1e-4)


def test_a_block_saves_little_more_than_the_inputs_of_its_products():
  """Saved in bfloat16, in units of [B, N, D]: 4 inputs of norms and products, q, k, v, y, 4 hidden.

  And in float32, the log-sum-exp of the logits of each head and query.
  """
  B, N, D, heads = 2, 5, 8, 2
  make = lambda rngs: transformer.Block(D, heads, 4 * D, dtype="bfloat16", rngs=rngs)
  graphdef, params = nnx.split(transformer.Stack(make, 3, rngs=nnx.Rngs(1)))
  x = jnp.ones((B, N, D), jnp.bfloat16)
  loss = lambda params: nnx.merge(graphdef, params)(x).astype(jnp.float32).sum()
  with any_platform():  # On a CPU, activations are float32.
    program = jax.make_jaxpr(jax.grad(loss))(params)
  forward = next(e for e in program.eqns if e.primitive.name == "scan")
  kept = sum(v.aval.size * v.aval.dtype.itemsize for v in forward.outvars if len(v.aval.shape) > 3)
  assert kept == 3 * (12 * B * N * D * 2 + B * N * heads * 4)


def saved_for_the_backward_pass(module, x):
  """Arrays saved for the gradients of the parameters and of x, other than parameters."""
  graphdef, params = nnx.split(module)
  kept = jax.eval_shape(
    lambda p, x: jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x), p, x)[1], params, x
  )
  shapes = {p.shape for p in jax.tree.leaves(params)}
  return [a for a in jax.tree.leaves(kept) if a.shape not in shapes and a.size >= x.size]


@pytest.mark.parametrize(
  "norm",
  [
    layers.LayerNorm(8, dtype="bfloat16"),
    layers.BatchNorm(8, dtype="bfloat16"),
    GroupNorm(8, 2, dtype="bfloat16"),
  ],
  ids=lambda norm: type(norm).__name__,
)
def test_a_norm_saves_only_its_input(norm):
  kept = saved_for_the_backward_pass(norm, jnp.zeros((4, 6, 6, 8), "bfloat16"))
  assert [(a.shape, a.dtype) for a in kept] == [((4, 6, 6, 8), jnp.dtype("bfloat16"))]


def test_blocks_of_a_stack_are_initialised_differently():
  stack = transformer.Stack(
    lambda rngs: transformer.Block(8, 2, 16, rngs=rngs), 2, rngs=nnx.Rngs(1)
  )
  kernel = stack.blocks.mlp.up.kernel[...]
  assert kernel.shape == (2, 8, 16)
  assert largest_difference(kernel[0], kernel[1]) > 0.1


def test_patches_match_a_strided_convolution():
  image, kernel = normal(2, 8, 12, 3), normal(4 * 4 * 3, 5, seed=1)
  expected = jax.lax.conv_general_dilated(
    image, kernel.reshape(4, 4, 3, 5), (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(
    patches.patchify(image, 4) @ kernel, expected.reshape(2, 6, 5), rtol=1e-4, atol=1e-4
  )


def test_patches_that_do_not_fit_are_an_error():
  with pytest.raises(UserError, match="10 x 8 image cannot be divided into 4 x 4 patches"):
    patches.patchify(jnp.zeros((1, 10, 8, 3)), 4)


def test_each_image_keeps_its_own_random_patches():
  x = np.arange(16, dtype=np.float32)[None, :, None].repeat(64, axis=0)  # Each token is its index.
  keys = jax.random.split(jax.random.key(0), 64)
  kept = np.asarray(patches.patch_dropout(x, 0.25, keys))[:, :, 0]
  assert kept.shape == (64, 4)
  assert all(len(set(row)) == 4 for row in kept)
  assert len({tuple(sorted(row)) for row in kept}) > 50
  counts = np.bincount(kept.astype(int).ravel(), minlength=16)
  assert counts.min() > 3 and counts.max() < 35  # 16 expected of each.
  np.testing.assert_array_equal(kept[:8], patches.patch_dropout(x[:8], 0.25, keys[:8])[:, :, 0])


def test_at_least_one_patch_is_kept():
  assert patches.patch_dropout(
    jnp.zeros((2, 4, 3)), 0.1, jax.random.split(jax.random.key(0), 2)
  ).shape == (2, 1, 3)


def test_dropping_patches_needs_no_communication():
  from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, P("data"))
  x = jax.device_put(jnp.ones((16, 9, 4)), rows)
  keys = jax.device_put(jax.random.split(jax.random.key(0, impl="threefry2x32"), 16), rows)
  text = (
    jax.jit(
      lambda x, keys: patches.patch_dropout(x, 0.5, keys),
      in_shardings=(rows, rows),
      out_shardings=rows,
    )
    .lower(x, keys)
    .compile()
    .as_text()
  )
  assert "sort" in text and not [
    word
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    if word in text
  ]


def test_sincos_positions_follow_moco_v3():
  width, got = 16, patches.sincos2d(3, 5, 16)
  for y in range(3):
    for x in range(5):
      for i in range(width // 4):
        omega = 10_000 ** -(i / (width / 4 - 1))
        row = got[y * 5 + x]
        np.testing.assert_allclose(
          [row[i], row[4 + i], row[8 + i], row[12 + i]],
          [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)],
          atol=1e-6,
        )


@pytest.mark.parametrize("width", [18, 4])  # With a width of 4 the only frequency is undefined.
def test_sincos_positions_need_a_width_divisible_by_four(width):
  with pytest.raises(UserError, match=f"divisible by 4, not {width}, and of at least 8"):
    patches.sincos2d(2, 2, width)


def test_width_must_be_divisible_by_heads():
  with pytest.raises(UserError, match="width 10 is not divisible by 3 heads"):
    transformer.Attention(10, 3, rngs=nnx.Rngs(0))


def test_unknown_names_list_the_known_ones():
  with pytest.raises(UserError, match="Unknown activation 'relu'; choose from 'gelu'"):
    layers.Mlp(4, 8, activation="relu", rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="Unknown remat 'some'; choose from 'none', 'dots'"):
    transformer.Stack(
      lambda rngs: transformer.Block(8, 2, 16, rngs=rngs), 1, remat="some", rngs=nnx.Rngs(0)
    )
  with pytest.raises(UserError, match="unroll=-1 is not a number of blocks. Set 0"):
    transformer.Stack(
      lambda rngs: transformer.Block(8, 2, 16, rngs=rngs), 1, unroll=-1, rngs=nnx.Rngs(0)
    )


def test_activations_match_their_formulas():
  x = jnp.float32(1.5)
  erf = 0.8663856
  np.testing.assert_allclose(layers.ACTIVATIONS["gelu"](x), 0.75 * (1 + erf), rtol=1e-5)
  np.testing.assert_allclose(
    layers.ACTIVATIONS["gelu_tanh"](x),
    0.75 * (1 + np.tanh(np.sqrt(2 / np.pi) * (1.5 + 0.044715 * 1.5**3))),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    layers.ACTIVATIONS["quick_gelu"](x), 1.5 / (1 + np.exp(-1.702 * 1.5)), rtol=1e-5
  )
