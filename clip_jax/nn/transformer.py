"""Multi-head attention, the pre-norm block, the scanned stack of blocks, MAP pooling."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.nn.attention import KINDS, attention
from clip_jax.nn.layers import (
  Initializer,
  LayerNorm,
  Linear,
  Mlp,
  add_bias,
  broadcast_param,
  glorot,
  lookup,
)
from clip_jax.nn.matmul import activation_dtype, matmul_f32_grad
from clip_jax.nn.remat import REMAT_POLICIES, remat
from clip_jax.nn.target import target_platform
from clip_jax.parallel.placement import shard_batch


class Attention(nnx.Module):
  """Multi-head self-attention with one fused kernel for queries, keys and values.

  Args:
    attention: the implementation, a name in `attention.KINDS`.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    attention: str = "auto",
    init: Initializer | None = None,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    check_heads(width, num_heads)
    lookup(KINDS, attention, "attention")
    # Initialised as three separate [D, D] kernels would be.
    self.qkv = Linear(
      width,
      (3, num_heads, width // num_heads),
      init=init or glorot(width, width),
      dtype=dtype,
      rngs=rngs,
    )
    self.out = Linear((num_heads, width // num_heads), width, init=init, dtype=dtype, rngs=rngs)
    self.attention = attention

  def __call__(
    self, x: jax.Array, mask: jax.Array | np.ndarray | None = None, bias: jax.Array | None = None
  ) -> jax.Array:
    """[B, N, D] -> [B, N, D]; or [B, S, N, D] -> [B, S, N, D], for S sequences per example.

    Args:
      mask: bool [B or 1, 1, N, N], True where a query may attend; [S, 1, 1, N, N] for S sequences.
      bias: float [B or 1, heads, N, N], added to the logits.
    """
    q, k, v = self._project_qkv(x)  # [B, N, heads, D/h]
    attend = functools.partial(attention, kind=self.attention, dtype=self.qkv.dtype)
    if x.ndim == 4:  # vmap keeps the batch axis separate, so its sharding does not change.
      attend = jax.vmap(attend, (1, 1, 1, None if mask is None else 0, None), 1)
    return self.out(attend(q, k, v, mask, bias))

  def _project_qkv(self, x):
    """Computes queries, keys and values."""
    if target_platform() != "tpu":
      qkv = shard_batch(self.qkv(x))  # [B, N, 3, heads, D/h]
      return tuple(qkv[..., i, :, :] for i in range(3))
    # Slicing one fused product on a TPU copies each slice into its own layout, which costs more
    # than three separate products do.
    kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
    return tuple(
      shard_batch(add_bias(matmul_f32_grad(x, kernel[:, i], 1, self.qkv.dtype), bias[i]))
      for i in range(3)
    )


def check_heads(width: int, num_heads: int) -> None:
  """Raises `UserError` unless the width is divisible by the number of heads."""
  if width % num_heads:
    raise UserError(f"width {width} is not divisible by {num_heads} heads.")


class Block(nnx.Module):
  """A pre-norm transformer block."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-6,
    attention: str = "auto",
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    self.norm_attention = LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    self.attention = Attention(width, num_heads, attention=attention, dtype=dtype, rngs=rngs)
    self.norm_mlp = LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    x = x + self.attention(self.norm_attention(x), mask)
    return shard_batch(x + self.mlp(self.norm_mlp(x)))


class Stack(nnx.Module):
  """A sequence of `depth` blocks with stacked parameters: each has a leading [depth] axis.

  Args:
    make_block: makes a block from `nnx.Rngs`.
    remat: rematerialisation policy of a block, a name in `REMAT_POLICIES`.
    unroll: blocks per iteration of the compiled loop. 0 means 1 on a CPU or TPU, where only one
      block is compiled whatever the depth, and all blocks on a GPU. A loop on a GPU increases
      memory traffic by a quarter, to stack the residuals of each iteration (docs/speed.md).
  """

  def __init__(
    self,
    make_block: Callable[[nnx.Rngs], nnx.Module],
    depth: int,
    *,
    remat: str = "none",
    unroll: int = 0,
    rngs: nnx.Rngs,
  ):
    self.blocks = (
      jax.vmap(lambda key: make_block(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))
      if depth
      else None
    )
    lookup(REMAT_POLICIES, remat, "remat")
    if unroll < 0:
      raise UserError(
        f"unroll={unroll} is not a number of blocks. Set 0 to choose by device, or a "
        "number from 1 up."
      )
    self.remat, self.unroll, self.depth = remat, unroll, depth
    self.frozen_blocks = 0  # The first blocks that have no backward pass; see `model.frozen`.

  def __call__(self, x: jax.Array, *shared: Any) -> jax.Array:
    """[B, ..., D] -> [B, ..., D]; every block also receives `shared`, such as a mask."""
    frozen = self.frozen_blocks
    if not frozen:
      return self._apply(x, self.blocks, self.depth, shared)
    part = lambda cut: jax.tree.map(lambda p: p[cut], self.blocks)
    x = self._apply(x, lax.stop_gradient(part(slice(frozen))), frozen, shared)
    return self._apply(x, part(slice(frozen, None)), self.depth - frozen, shared)

  def _apply(self, x, blocks, depth, shared):
    """Applies `depth` stacked blocks in order."""
    unroll = self.unroll or (depth if target_platform() == "gpu" else 1)
    loops = unroll < depth

    def apply(x, block):
      return block(x, *shared), None

    if self.remat != "none":
      # Without a loop, common-subexpression elimination would undo the rematerialisation.
      apply = jax.checkpoint(apply, policy=REMAT_POLICIES[self.remat], prevent_cse=not loops)
    x = shard_batch(x)
    if loops:
      return lax.scan(apply, x, blocks, unroll=unroll)[0]
    for i in range(depth):
      x, _ = apply(x, jax.tree.map(lambda p: p[i], blocks))
    return x


def transformer_stack(
  width: int,
  depth: int,
  num_heads: int,
  mlp_dim: int,
  *,
  activation: str,
  norm_eps: float = 1e-6,
  attention: str = "auto",
  dtype: str,
  remat: str,
  unroll: int,
  rngs: nnx.Rngs,
) -> Stack:
  """Makes a stack of identical transformer blocks."""
  make = lambda rngs: Block(
    width,
    num_heads,
    mlp_dim,
    activation=activation,
    norm_eps=norm_eps,
    attention=attention,
    dtype=dtype,
    rngs=rngs,
  )
  return Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)


class MapHead(nnx.Module):
  """Multi-head attention pooling: one learned query attends to all tokens; then a residual MLP.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.2, as in big_vision: no residual around attention.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-6,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    check_heads(width, num_heads)
    self.probe = nnx.Param(glorot(1, width)(rngs.params(), (width,)))
    self.query = Linear(width, (num_heads, width // num_heads), dtype=dtype, rngs=rngs)
    self.key_value = Linear(
      width, (2, num_heads, width // num_heads), init=glorot(width, width), dtype=dtype, rngs=rngs
    )
    self.out = Linear((num_heads, width // num_heads), width, dtype=dtype, rngs=rngs)
    self.norm = LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, D]; `mask`, bool [B, N], is True at the tokens to attend to."""
    B = x.shape[0]
    query = self.query(self.probe[...]).astype(jnp.float32)  # [heads, D/h]
    query = broadcast_param(query, (B, 1, *query.shape), activation_dtype(self.query.dtype))
    key_value = self.key_value(x)  # [B, N, 2, heads, D/h]
    mask = None if mask is None else mask[:, None, None, :]
    x = self.out(
      remat(jax.nn.dot_product_attention)(query, key_value[:, :, 0], key_value[:, :, 1], None, mask)
    )[:, 0]  # [B, D]
    return x + self.mlp(self.norm(x))
