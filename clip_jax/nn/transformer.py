"""Multi-head self-attention, the transformer block, and the scanned stack of blocks."""

from collections.abc import Callable
import functools
from typing import Annotated, Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import OneOf
from clip_jax.errors import UserError
from clip_jax.nn.attention import KINDS, attention, check_heads
from clip_jax.nn.layers import (
  NORMS,
  Initializer,
  Linear,
  Mlp,
  add_bias,
  broadcast_param,
  glorot,
  lookup,
)
from clip_jax.nn.matmul import matmul_f32_grad
from clip_jax.nn.remat import REMAT_POLICIES
from clip_jax.nn.rotary import Rotation, rotate
from clip_jax.nn.target import target_platform
from clip_jax.parallel.placement import shard_batch

# Where a block normalises.
NORM_ORDERS = {
  "pre": "the input of each branch, x + f(norm(x))",
  "post": "each sum, norm(x + f(x)), as in BERT",
  "branch": "the output of each branch, x + norm(f(x)), as in EVA-02's largest model",
}
NormOrder = Annotated[str, OneOf(NORM_ORDERS)]


class Attention(nnx.Module):
  """Multi-head self-attention with one fused kernel for queries, keys and values.

  Args:
    attention: the implementation, a name in `attention.KINDS`.
    qk_norm: kind of the norms of each head's queries and keys, a name in `NORMS`; None for none.
    out_norm: kind of a norm of all heads' outputs, before the output projection.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    attention: str = "auto",
    qk_norm: str | None = None,
    out_norm: str | None = None,
    norm_eps: float = 1e-6,
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
    norm = lambda kind, width: (
      lookup(NORMS, kind, "norm")(width, norm_eps=norm_eps, dtype=dtype) if kind else None
    )
    self.query_norm = norm(qk_norm, width // num_heads)
    self.key_norm = norm(qk_norm, width // num_heads)
    self.out_norm = norm(out_norm, width)

  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | np.ndarray | None = None,
    bias: jax.Array | None = None,
    rotation: Rotation | None = None,
  ) -> jax.Array:
    """[B, N, D] -> [B, N, D]; or [B, S, N, D] -> [B, S, N, D], for S sequences per example.

    Args:
      mask: bool [B or 1, 1, N, N], True where a query may attend; [S, 1, 1, N, N] for S sequences.
      bias: float [B or 1, heads, N, N], added to the logits.
      rotation: rotary position embeddings of the N tokens; only for one sequence per example.
    """
    q, k, v = self._project_qkv(x)  # [B, N, heads, D/h]
    if self.query_norm is not None:
      q, k = self.query_norm(q), self.key_norm(k)
    if rotation is not None:
      q, k = rotate(q, rotation), rotate(k, rotation)
    attend = functools.partial(attention, kind=self.attention, dtype=self.qkv.dtype)
    if x.ndim == 4:  # vmap keeps the batch axis separate, so its sharding does not change.
      attend = jax.vmap(attend, (1, 1, 1, None if mask is None else 0, None), 1)
    y = attend(q, k, v, mask, bias)  # [B, N, heads, D/h]
    if self.out_norm is not None:
      y = self.out_norm(y.reshape(*y.shape[:-2], -1)).reshape(y.shape)
    return self.out(y)

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


class Block(nnx.Module):
  """A transformer block: attention and an MLP, each with a norm and a residual connection.

  Args:
    norm: kind of the norms, a name in `NORMS`.
    norm_order: a name in `NORM_ORDERS`.
    qk_norm: whether to normalise queries and keys, per head.
    sub_norm: whether to normalise before the last layer of each branch too, as in EVA-02.
    layer_scale: initial value of a learned scale per channel of each branch; None for no scale.
    gated_mlp: as `gated` of `Mlp`.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: str = "gelu_tanh",
    norm: str = "layer",
    norm_eps: float = 1e-6,
    norm_order: str = "pre",
    qk_norm: bool = False,
    sub_norm: bool = False,
    layer_scale: float | None = None,
    gated_mlp: bool = False,
    attention: str = "auto",
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    make_norm = lookup(NORMS, norm, "norm")
    self.norm_attention = make_norm(width, norm_eps=norm_eps, dtype=dtype)
    self.attention = Attention(
      width,
      num_heads,
      attention=attention,
      qk_norm=norm if qk_norm else None,
      out_norm=norm if sub_norm else None,
      norm_eps=norm_eps,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm_mlp = make_norm(width, norm_eps=norm_eps, dtype=dtype)
    self.mlp: Any = Mlp(
      width,
      mlp_dim,
      activation=activation,
      gated=gated_mlp,
      hidden_norm=norm if sub_norm else None,
      norm_eps=norm_eps,
      dtype=dtype,
      rngs=rngs,
    )
    scale = lambda: None if layer_scale is None else nnx.Param(jnp.full(width, layer_scale))
    self.scale_attention, self.scale_mlp = scale(), scale()
    self.norm_order = lookup({name: name for name in NORM_ORDERS}, norm_order, "norm_order")

  def __call__(
    self, x: jax.Array, mask: jax.Array | None = None, rotation: Rotation | None = None
  ) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    attend = lambda x: self.attention(x, mask, rotation=rotation)
    x = self._add(x, attend, self.norm_attention, self.scale_attention)
    return shard_batch(self._add(x, self.mlp, self.norm_mlp, self.scale_mlp))

  def _add(self, x, branch, norm, scale):
    """Adds the output of a branch to x."""
    y = branch(norm(x) if self.norm_order == "pre" else x)
    if self.norm_order == "branch":
      y = norm(y)
    if scale is not None:
      y = broadcast_param(scale[...], y.shape, y.dtype) * y
    return norm(x + y) if self.norm_order == "post" else x + y


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
  remat: str,
  unroll: int,
  rngs: nnx.Rngs,
  **block: Any,
) -> Stack:
  """Makes a stack of identical transformer blocks; `block` holds other arguments of `Block`."""
  make = lambda rngs: Block(width, num_heads, mlp_dim, **block, rngs=rngs)
  return Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)
