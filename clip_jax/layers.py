"""Layers that towers are built from: linear, norms, attention, blocks, the scanned stack, patches.

Parameters are float32; `dtype` is the dtype a layer computes in. Kernels are [in, ..., out], and
attention heads have their own axis, so that tensor parallelism can split it.

The gradient of a parameter is a sum over all rows of the batch, including those on other devices.
`product` and `spread` cast it to float32 before the sum: in bfloat16, which has 8 significant bits,
a sum over 256 devices is off by 1.5%.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.attention import KINDS, attended
from clip_jax.errors import UserError
from clip_jax.remat import REMAT, made_again
from clip_jax.sharding import on_rows
from clip_jax.target import platform

Initializer = Callable[..., jax.Array]

# big_vision uses the tanh approximation, OpenAI's CLIP quick_gelu, and open_clip's own models the
# exact form.
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def one_of(table: dict[Any, Any], name: Any, what: str) -> Any:
  """Returns `table[name]`; raises `UserError`, listing the known names, if it is not there."""
  if name not in table:
    raise UserError(f"Unknown {what} {name!r}; choose from {', '.join(map(repr, table))}.")
  return table[name]


def glorot(fan_in: int, fan_out: int) -> Initializer:
  """Glorot uniform with explicit fans, for kernels where the shape does not determine them.

  The variance is 2 / (fan_in + fan_out).

  Source: Glorot & Bengio 2010, eq. 16.
  """
  limit = math.sqrt(6 / (fan_in + fan_out))
  return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def normal(deviation: float) -> Initializer:
  """Normal initializer with a fixed standard deviation, independent of the shape."""
  return lambda key, shape: deviation * jax.random.normal(key, shape)


def _product(x, kernel, n):
  return lax.dot_general(x, kernel.astype(x.dtype),
                         ((range(x.ndim - n, x.ndim), range(n)), ((), ())))


def _product_gradients(n, residuals, g):
  x, kernel = residuals
  rows = tuple(range(x.ndim - n))
  dx = lax.dot_general(g, kernel.astype(g.dtype),
                       ((range(len(rows), g.ndim), range(n, kernel.ndim)), ((), ())))
  return dx, lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, n: int) -> jax.Array:
  """Computes `x @ kernel` over the last n axes of x, in x's dtype.

  The kernel's gradient has the kernel's dtype.
  """
  return _product(x, kernel, n)


# Save the float32 parameter, not its bfloat16 cast: the scan would stack one cast per block.
product.defvjp(lambda x, kernel, n: (_product(x, kernel, n), (x, kernel)), _product_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(parameter: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
  """Casts a parameter to `dtype` and broadcasts it to `shape`.

  The parameter's gradient has the parameter's dtype.
  """
  return jnp.broadcast_to(parameter.astype(dtype), shape)


def _spread_gradient(shape, dtype, parameter, g):
  if platform() == "gpu":
    # Without the barrier, XLA keeps a float32 copy of g and of its inputs for this sum. For
    # positions, [N, D], it also lays out all activations batch-last, unless g is flattened first.
    g = lax.optimization_barrier(g.reshape(-1, parameter.size) if parameter.ndim == 2 else g)
    if parameter.ndim == 2:
      return (g.sum(0, dtype=parameter.dtype).reshape(parameter.shape),)
  return (g.sum(range(len(shape) - parameter.ndim), dtype=parameter.dtype),)


spread.defvjp(lambda parameter, shape, dtype: (spread(parameter, shape, dtype), parameter),
              _spread_gradient)


def added(x: jax.Array, parameter: jax.Array) -> jax.Array:
  """Computes `x + parameter`, broadcasting the parameter over the leading axes of x."""
  return x + spread(parameter, x.shape, x.dtype)


class Linear(nnx.Module):
  """A linear layer, `x @ kernel + bias`, over the last axes of x.

  Args:
    inputs, outputs: shapes of the contracted and the new axes; an int is a single axis.
    init: initializer of the kernel; Glorot uniform by default.
  """

  def __init__(self, inputs: int | tuple[int, ...], outputs: int | tuple[int, ...], *,
               bias: bool = True, init: Initializer | None = None, dtype: str = "float32",
               rngs: nnx.Rngs):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    init = init or glorot(math.prod(inputs), math.prod(outputs))
    self.kernel = nnx.Param(init(rngs.params(), inputs + outputs))
    self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
    self.contracted = len(inputs)
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., inputs] -> [..., outputs]."""
    x = product(x.astype(self.dtype), self.kernel[...], self.contracted)
    return x if self.bias is None else added(x, self.bias[...])


class LayerNorm(nnx.Module):
  """Layer normalisation over the last axis, computed in float32."""

  def __init__(self, width: int, *, epsilon: float = 1e-6, dtype: str = "float32"):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))
    self.epsilon, self.dtype = epsilon, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""
    @made_again
    def normalised(x, scale, bias):
      x = x.astype(jnp.float32)
      x = x - x.mean(-1, keepdims=True)
      x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
      return (x * scale + bias).astype(self.dtype)

    return normalised(x, self.scale[...], self.bias[...])


class BatchNorm(nnx.Module):
  """Batch normalisation of each channel over all other axes, computed in float32.

  Statistics are those of the global batch, on any number of devices. In training, each call moves
  the running averages by `momentum`; the running variance is the unbiased estimate, as in PyTorch.
  Inference normalises with the running averages.

  Args:
    scale: initial value of the learned scale; 0 makes a residual block start as the identity.

  Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
  """

  def __init__(self, width: int, *, scale: float = 1.0, momentum: float = 0.1,
               epsilon: float = 1e-5, dtype: str = "float32"):
    self.scale = nnx.Param(jnp.full(width, scale))
    self.bias = nnx.Param(jnp.zeros(width))
    self.mean = nnx.BatchStat(jnp.zeros(width))
    self.variance = nnx.BatchStat(jnp.ones(width))
    self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, ..., D] -> [B, ..., D].

    Args:
      train: whether to normalise with the statistics of this batch and update the running averages.
    """
    @made_again
    def normalised(x, scale, bias, mean, variance):
      x = x.astype(jnp.float32)
      if train:
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)
      y = (x - mean) * lax.rsqrt(variance + self.epsilon)
      return (y * scale + bias).astype(self.dtype), mean, variance

    y, mean, variance = normalised(
        x, self.scale[...], self.bias[...], self.mean[...], self.variance[...])
    if train:
      count = math.prod(x.shape[:-1])
      unbiased = variance * (count / max(count - 1, 1))
      for average, now in ((self.mean, mean), (self.variance, unbiased)):
        average[...] += self.momentum * (lax.stop_gradient(now) - average[...])
    return y


class Attention(nnx.Module):
  """Multi-head self-attention with one fused kernel for queries, keys and values.

  Args:
    attention: the implementation, a name in `attention.KINDS`.
  """

  def __init__(self, width: int, heads: int, *, attention: str = "auto",
               init: Initializer | None = None, dtype: str = "float32", rngs: nnx.Rngs):
    check_heads(width, heads)
    one_of(KINDS, attention, "attention")
    # Initialised as three separate [D, D] kernels would be.
    self.qkv = Linear(width, (3, heads, width // heads), init=init or glorot(width, width),
                      dtype=dtype, rngs=rngs)
    self.out = Linear((heads, width // heads), width, init=init, dtype=dtype, rngs=rngs)
    self.attention = attention

  def __call__(self, x: jax.Array, mask: jax.Array | np.ndarray | None = None,
               bias: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, N, D]; or [B, S, N, D] -> [B, S, N, D], for S sequences per example.

    Args:
      mask: bool [B or 1, 1, N, N], True where a query may attend; [S, 1, 1, N, N] for S sequences.
      bias: float [B or 1, heads, N, N], added to the logits.
    """
    q, k, v = self._projected(x)                                            # [B, N, heads, D/h]
    attend = functools.partial(attended, kind=self.attention)
    if x.ndim == 4:  # vmap keeps the batch axis separate, so its sharding does not change.
      attend = jax.vmap(attend, (1, 1, 1, None if mask is None else 0, None), 1)
    return self.out(attend(q, k, v, mask, bias))

  def _projected(self, x):
    """Computes queries, keys and values."""
    if platform() != "tpu":
      qkv = on_rows(self.qkv(x))                                            # [B, N, 3, heads, D/h]
      return tuple(qkv[..., i, :, :] for i in range(3))
    # Slicing one fused product on a TPU copies each slice into its own layout, which costs more
    # than three separate products do.
    x, kernel, bias = x.astype(self.qkv.dtype), self.qkv.kernel[...], self.qkv.bias[...]
    return tuple(on_rows(added(product(x, kernel[:, i], 1), bias[i])) for i in range(3))


def check_heads(width: int, heads: int) -> None:
  """Raises `UserError` unless the width is divisible by the number of heads."""
  if width % heads:
    raise UserError(f"width {width} is not divisible by {heads} heads.")


class Mlp(nnx.Module):
  """Two linear layers with an activation between them."""

  def __init__(self, width: int, hidden: int, *, activation: str = "gelu_tanh",
               init: Initializer | None = None, dtype: str = "float32", rngs: nnx.Rngs):
    one_of(ACTIVATIONS, activation, "activation")
    self.up = Linear(width, hidden, init=init, dtype=dtype, rngs=rngs)
    self.down = Linear(hidden, width, init=init, dtype=dtype, rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""
    down = made_again(lambda hidden: self.down(activated(hidden, self.activation)))
    return down(on_rows(self.up(x)))


def activated(x: jax.Array, activation: str) -> jax.Array:
  """Applies a named activation, computed in float32 and returned in the dtype of x."""
  return ACTIVATIONS[activation](x.astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
  """A pre-norm transformer block."""

  def __init__(self, width: int, heads: int, mlp: int, *, activation: str = "gelu_tanh",
               epsilon: float = 1e-6, attention: str = "auto", dtype: str = "float32",
               rngs: nnx.Rngs):
    self.norm_attention = LayerNorm(width, epsilon=epsilon, dtype=dtype)
    self.attention = Attention(width, heads, attention=attention, dtype=dtype, rngs=rngs)
    self.norm_mlp = LayerNorm(width, epsilon=epsilon, dtype=dtype)
    self.mlp = Mlp(width, mlp, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    x = x + self.attention(self.norm_attention(x), mask)
    return on_rows(x + self.mlp(self.norm_mlp(x)))


class Stack(nnx.Module):
  """A sequence of `depth` blocks with stacked parameters: each has a leading [depth] axis.

  Args:
    make_block: makes a block from `nnx.Rngs`.
    remat: rematerialisation policy of a block, a name in `REMAT`.
    unroll: blocks per iteration of the compiled loop. 0 means 1 on a CPU or TPU, where only one
      block is compiled whatever the depth, and all blocks on a GPU. A loop on a GPU increases
      memory traffic by a quarter, to stack the residuals of each iteration (docs/speed.md).
  """

  def __init__(self, make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, *,
               remat: str = "none", unroll: int = 0, rngs: nnx.Rngs):
    self.blocks = jax.vmap(lambda key: make_block(nnx.Rngs(key)))(
        jax.random.split(rngs.params(), depth)) if depth else None
    one_of(REMAT, remat, "remat")
    if unroll < 0:
      raise UserError(f"unroll={unroll} is not a number of blocks. Set 0 to choose by device, or a "
                      "number from 1 up.")
    self.remat, self.unroll, self.depth = remat, unroll, depth

  def __call__(self, x: jax.Array, *shared: Any) -> jax.Array:
    """[B, ..., D] -> [B, ..., D]; every block also receives `shared`, such as a mask."""
    unroll = self.unroll or (self.depth if platform() == "gpu" else 1)
    loops = unroll < self.depth

    def apply(x, block):
      return block(x, *shared), None

    if self.remat != "none":
      # Without a loop, common-subexpression elimination would undo the rematerialisation.
      apply = jax.checkpoint(apply, policy=REMAT[self.remat], prevent_cse=not loops)
    x = on_rows(x)
    if loops:
      return lax.scan(apply, x, self.blocks, unroll=unroll)[0]
    for i in range(self.depth):
      x, _ = apply(x, jax.tree.map(lambda p: p[i], self.blocks))
    return x


def blocks(width: int, depth: int, heads: int, mlp: int, *, activation: str, epsilon: float = 1e-6,
           attention: str = "auto", dtype: str, remat: str, unroll: int, rngs: nnx.Rngs) -> Stack:
  """Makes a stack of identical transformer blocks."""
  make = lambda rngs: Block(width, heads, mlp, activation=activation, epsilon=epsilon,
                            attention=attention, dtype=dtype, rngs=rngs)
  return Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)


class MapHead(nnx.Module):
  """Multi-head attention pooling: one learned query attends to all tokens; then a residual MLP.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.2, as in big_vision: no residual around attention.
  """

  def __init__(self, width: int, heads: int, mlp: int, *, activation: str = "gelu_tanh",
               epsilon: float = 1e-6, dtype: str = "float32", rngs: nnx.Rngs):
    check_heads(width, heads)
    self.probe = nnx.Param(glorot(1, width)(rngs.params(), (width,)))
    self.query = Linear(width, (heads, width // heads), dtype=dtype, rngs=rngs)
    self.key_value = Linear(width, (2, heads, width // heads), init=glorot(width, width),
                            dtype=dtype, rngs=rngs)
    self.out = Linear((heads, width // heads), width, dtype=dtype, rngs=rngs)
    self.norm = LayerNorm(width, epsilon=epsilon, dtype=dtype)
    self.mlp = Mlp(width, mlp, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, D]; `mask`, bool [B, N], is True at the tokens to attend to."""
    B = x.shape[0]
    query = self.query(self.probe[...]).astype(jnp.float32)                 # [heads, D/h]
    query = spread(query, (B, 1, *query.shape), self.query.dtype)
    key_value = self.key_value(x)                                           # [B, N, 2, heads, D/h]
    mask = None if mask is None else mask[:, None, None, :]
    x = self.out(made_again(jax.nn.dot_product_attention)(
        query, key_value[:, :, 0], key_value[:, :, 1], None, mask))[:, 0]   # [B, D]
    return x + self.mlp(self.norm(x))


def patches(image: jax.Array, size: int) -> jax.Array:
  """Splits images into patches, row by row: [B, H, W, C] -> [B, N, size * size * C].

  A matrix product with the result is a convolution with this stride and kernel size.
  """
  B, H, W, C = image.shape
  if H % size or W % size:
    raise UserError(f"A {H} x {W} image cannot be divided into {size} x {size} patches.")
  image = image.reshape(B, H // size, size, W // size, size, C)
  return image.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


def squares(x: jax.Array, size: int) -> jax.Array:
  """Splits a feature map into patches, zero-padding its bottom and right edges where needed.

  [B, H, W, C] -> [B, ceil(H / size), ceil(W / size), size * size * C].
  """
  B, H, W, C = x.shape
  x = jnp.pad(x, ((0, 0), (0, -H % size), (0, -W % size), (0, 0)))
  return patches(x, size).reshape(B, -(-H // size), -(-W // size), size * size * C)


def check_keeps_all(keep: float, why: str) -> None:
  """Raises `UserError` if patches are to be dropped from a tower that needs all of them."""
  if keep < 1:
    raise UserError(
        f"keep={keep} drops patches, but {why}. Set the objective's keep_patches=1, or train a "
        "Vit; to save compute with this tower, use smaller images.")


def some_of(x: jax.Array, keep: float, key: jax.Array) -> jax.Array:
  """Keeps an independent random subset of each example's tokens: [B, N, D] -> [B, K, D].

  K = max(1, int(N * keep)), rounded as in FLIP (Li et al. 2023, sec. 3). The tokens come back in
  random order, so add position embeddings first.

  Args:
    key: one key per example, [B].
  """
  N = x.shape[1]
  noise = jax.vmap(lambda k: jax.random.uniform(k, (N,)))(key)              # [B, N]
  # The partitioner cannot split lax.top_k and would gather the noise of the whole batch.
  kept = jnp.argsort(noise, axis=1)[:, :max(1, int(N * keep))]              # [B, K]
  return jnp.take_along_axis(x, kept[:, :, None], axis=1)


def sincos2d(rows: int, columns: int, width: int, *, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed 2D sine-cosine position embeddings of a grid, float32 [rows * columns, width].

  Source: Chen et al. 2021 (MoCo v3), as in big_vision, with frequency exponents
  i / (width / 4 - 1). MAE and FLIP divide by width / 4 instead, which gives a different embedding.
  """
  if width % 4:
    raise UserError(f"sincos2d positions need a width divisible by 4, not {width}.")
  omega = temperature ** (-np.arange(width // 4) / (width // 4 - 1))
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * omega                # [N, width / 4] each
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
