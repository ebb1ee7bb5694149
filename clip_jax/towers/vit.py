"""The vision transformer."""

import math
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import (
  Depth,
  ImageSize,
  NonNegativeFloat,
  NonNegativeInt,
  Pixels,
  Width,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.nn import attention_pooling, layers, patches, rotary as rotary_lib, transformer
from clip_jax.nn.attention import AttentionKind
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import TransformerSize, both_sides, transformer_size


@checked
class Vit(nnx.Module):
  """Patch and position embeddings, transformer blocks, a norm, and pooling.

  Args:
    size: a name in `towers.sizes`, overridden by `width`, `depth`, `mlp_dim` and `num_heads`.
    patch: side of a patch in pixels.
    image_size: side, or (height, width), of the images in pixels.
    pool: "gap", the mean of the patches; "tok", a class token (never dropped); "map", a learned
      query that attends to all tokens; "attn", the same without an MLP after it, as in CoCa.
    positions: position embeddings, "learned", "sincos2d" (fixed, as in MoCo v3) or "none".
    class_token: whether there is a class token; by default only with pool="tok".
    class_position: whether the class token also has a learned position embedding, in row 0 of
      `positions`.
    registers: number of learned tokens without positions, never dropped and left out of "gap"
      (Darcet et al. 2024).
    rotary: rotation of queries and keys by the position of their patch, a name in
      `nn.rotary.ROTARY`.
    rotary_grid: side, or (rows, columns), of the grid of patches that rotations are scaled to; by
      default that of `image_size`. Set it to the grid of the first training to tune at another
      image size.
    pre_norm: whether to add a norm before the blocks.
    norm: kind of all norms, "layer" or "rms".
    norm_order: where blocks normalise, a name in `nn.transformer.NORM_ORDERS`; with "post" there is
      no norm after the blocks.
    norm_after_pool: whether the mean of pool="gap" is normalised, and not each patch before it, as
      in CLIPA.
    qk_norm: whether to normalise queries and keys per head (Dehghani et al. 2023, sec. 2.1).
    sub_norm: whether to normalise before the last layer of each branch too (Wang et al. 2022).
    layer_scale: initial value of a learned scale per channel of each residual branch, such as 1e-5
      (Touvron et al. 2021, sec. 2.1); None for no scale.
    gated_mlp: whether to multiply hidden units by activation(gate). With activation="silu" this is
      SwiGLU; an `mlp_dim` of 8/3 of the width costs as much as a plain one of 4 times the width.
    pool_heads, pool_mlp_dim: heads and hidden width of the pooling head of "map" and "attn"; by
      default those of the blocks.
    pool_width: width of the result of pool="attn"; by default that of the tower.
    patch_bias: whether the patch embedding has a bias.
    drop_rest: whether to drop pixels at the right and the bottom that do not fill a patch, as
      SigLIP's so400m does at 384 pixels; otherwise such an image size is an error.
    norm_eps: epsilon of the norms.
    activation: a name in `layers.ACTIVATIONS`.
    dtype: dtype the tower computes in, a name in `target.DTYPES`; parameters are always float32.
    attention: the attention implementation, a name in `attention.KINDS`.
    remat: rematerialisation policy of a block, a name in `remat.REMAT_POLICIES`.
    unroll: blocks per iteration of the compiled loop over blocks, as in `transformer.Stack`.

  For OpenAI's form (Radford et al. 2021), set pool="tok", class_position=True, pre_norm=True,
  patch_bias=False, norm_eps=1e-5 and activation="quick_gelu" ("gelu" in open_clip's own models).
  For SigLIP's, set pool="map".

  Source: Dosovitskiy et al. 2021; sizes, heads and initial values as in big_vision.
  """

  def __init__(
    self,
    *,
    size: TransformerSize = "B",
    patch: Pixels = 16,
    image_size: ImageSize = 224,
    pool: Literal["gap", "tok", "map", "attn"] = "gap",
    positions: Literal["learned", "sincos2d", "none"] = "learned",
    class_token: bool | None = None,
    class_position: bool = False,
    registers: NonNegativeInt = 0,
    rotary: rotary_lib.Rotary = "none",
    rotary_grid: Pixels | tuple[Pixels, Pixels] | None = None,
    pre_norm: bool = False,
    norm: layers.Norm = "layer",
    norm_order: transformer.NormOrder = "pre",
    norm_after_pool: bool = False,
    qk_norm: bool = False,
    sub_norm: bool = False,
    layer_scale: NonNegativeFloat | None = None,
    gated_mlp: bool = False,
    pool_heads: Width | None = None,
    pool_mlp_dim: Width | None = None,
    pool_width: Width | None = None,
    patch_bias: bool = True,
    drop_rest: bool = False,
    norm_eps: layers.NormEps = 1e-6,
    width: Width | None = None,
    depth: Depth | None = None,
    mlp_dim: Width | None = None,
    num_heads: Width | None = None,
    activation: layers.Activation = "gelu_tanh",
    attention: AttentionKind = "auto",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    dtype = resolve_dtype(dtype)
    class_token = pool == "tok" if class_token is None else class_token
    _check_form(pool, positions, class_token, class_position, norm_after_pool, pool_width)
    width, depth, mlp_dim, num_heads = transformer_size(size, width, depth, mlp_dim, num_heads)
    height, across = both_sides(image_size)
    if (height % patch or across % patch) and not drop_rest:
      raise UserError(
        f"A {height} x {across} image cannot be divided into {patch} x {patch} "
        f"patches. Nearest valid height: {max(1, round(height / patch)) * patch}. "
        "Or set drop_rest=True to drop the rest."
      )
    self.grid = (height // patch, across // patch)
    N = math.prod(self.grid)
    self.width = (pool_width or width) if pool == "attn" else width
    self.patch, self.image_size, self.pool = patch, (height, across), pool
    self.class_position, self.dtype = class_position, dtype
    self.embedding = layers.Linear(
      patch * patch * 3, width, bias=patch_bias, dtype=dtype, rngs=rngs
    )
    if positions == "learned":
      self.positions: nnx.Variable | None = nnx.Param(
        jax.random.normal(rngs.params(), (N + class_position, width)) / math.sqrt(width)
      )
    elif positions == "sincos2d":
      self.positions = FixedPositions(jnp.asarray(patches.sincos2d(*self.grid, width)))
    else:
      self.positions = None
    self.class_token = nnx.Param(jnp.zeros(width)) if class_token else None
    make_norm = lambda: layers.NORMS[norm](width, norm_eps=norm_eps, dtype=dtype)
    self.pre_norm = make_norm() if pre_norm else None
    self.stack = transformer.transformer_stack(
      width,
      depth,
      num_heads,
      mlp_dim,
      activation=activation,
      norm=norm,
      norm_eps=norm_eps,
      norm_order=norm_order,
      qk_norm=qk_norm,
      sub_norm=sub_norm,
      layer_scale=layer_scale,
      gated_mlp=gated_mlp,
      attention=attention,
      dtype=dtype,
      remat=remat,
      unroll=unroll,
      rngs=rngs,
    )
    self.norm = make_norm() if norm_order != "post" else None
    self.norm_after_pool = norm_after_pool
    pool_heads = pool_heads or num_heads
    if pool == "map":
      self.head: nnx.Module = attention_pooling.MapHead(
        width,
        pool_heads,
        pool_mlp_dim or mlp_dim,
        activation=activation,
        norm_eps=norm_eps,
        dtype=dtype,
        rngs=rngs,
      )
    elif pool == "attn":
      self.head = attention_pooling.AttentionPool(
        width, self.width, pool_heads, norm_eps=norm_eps, dtype=dtype, rngs=rngs
      )
    self.registers = (
      nnx.Param(0.02 * jax.random.normal(rngs.params(), (registers, width))) if registers else None
    )
    self.prefix = class_token + registers  # Tokens before the patches.
    self.token_width = width
    self.rotary, self.head_dim = rotary, width // num_heads
    self.rotary_grid = both_sides(rotary_grid) if rotary_grid else self.grid
    if rotary != "none":
      self._rotation()  # An error, if heads have a width that cannot be rotated.

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D].

    Args:
      keep: fraction of the patches kept, an independent random subset of each image (FLIP).
      key: one key per image, [B]; required if keep < 1.
    """
    return self.pooled(self.tokens(image, train=train, keep=keep, key=key))

  def tokens(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Tokens after the last block, float [B, H, W, 3] -> [B, N, D]; arguments of `__call__`."""
    if image.shape[1:3] != self.image_size:
      raise UserError(
        f"Vit expected images of {self.image_size[0]} x {self.image_size[1]}, but "
        f"got {image.shape[1]} x {image.shape[2]}. Set the tower's image_size and "
        "the crop's size to the same value."
      )
    height, width = (side // self.patch * self.patch for side in self.image_size)
    x = self.embedding(patches.patchify(image[:, :height, :width], self.patch))  # [B, N, D]
    rotation = None if self.rotary == "none" else self._rotation()
    positions = None if self.positions is None else self.positions[...]
    if positions is not None:
      x = layers.add_bias(x, positions[1:] if self.class_position else positions)
    if keep < 1:
      kept = patches.kept_patches(x.shape[1], keep, key)  # [B, K]
      x = jnp.take_along_axis(x, kept[:, :, None], axis=1)  # [B, K, D]
      if rotation is not None:
        prefix = jnp.broadcast_to(jnp.arange(self.prefix), (len(kept), self.prefix))
        rotation = rotation.of_tokens(jnp.concatenate([prefix, kept + self.prefix], axis=1))
    if self.prefix:
      x = jnp.concatenate([*self._prefix_tokens(positions, x), x], axis=1)
    if self.pre_norm is not None:
      x = self.pre_norm(x)
    return self.stack(x) if rotation is None else self.stack(x, None, rotation)

  def _prefix_tokens(self, positions, x):
    """Yields the class token and the registers, [B, n, D] each."""
    broadcast = lambda p, n: layers.broadcast_param(p, (x.shape[0], n, p.shape[-1]), x.dtype)
    if self.class_token is not None:
      token = self.class_token[...]
      yield broadcast(token + positions[0] if self.class_position else token, 1)
    if self.registers is not None:
      yield broadcast(self.registers[...], len(self.registers))

  def _rotation(self):
    """Returns the rotation of all tokens."""
    return rotary_lib.grid_rotation(
      self.rotary, self.grid, self.head_dim, reference=self.rotary_grid, prefix=self.prefix
    )

  def pooled(self, x: jax.Array) -> jax.Array:
    """Tokens, [B, prefix + K, D] -> features [B, D]."""
    return shard_batch(self._pooled(x))

  def _pooled(self, x):
    if self.pool == "gap" and (self.norm is None or self.norm_after_pool):
      x = x[:, self.prefix :].mean(axis=1)
      return x if self.norm is None else self.norm(x)
    x = x if self.norm is None else self.norm(x)
    if self.pool == "gap":
      return x[:, self.prefix :].mean(axis=1)
    return x[:, 0] if self.pool == "tok" else self.head(x)


def _check_form(pool, positions, class_token, class_position, norm_after_pool, pool_width):
  """Raises `UserError` if arguments of a `Vit` contradict each other."""
  if pool == "tok" and not class_token:
    raise UserError('pool="tok" needs a class token. Leave class_token out, or pool by "gap".')
  if class_position and not (class_token and positions == "learned"):
    raise UserError(
      "class_position=True gives a class token a learned position, so it needs "
      'pool="tok" or class_token=True, and positions="learned", '
      f"not pool={pool!r}, class_token={class_token} and positions={positions!r}."
    )
  if norm_after_pool and pool != "gap":
    raise UserError(f'norm_after_pool=True is for pool="gap", not pool={pool!r}.')
  if pool_width and pool != "attn":
    raise UserError(f'pool_width={pool_width} is for pool="attn", not pool={pool!r}.')


class FixedPositions(nnx.Variable):
  """A constant array that belongs to the model and is neither trained nor updated."""
