"""The vision transformer."""

import math
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import (
  Depth,
  ImageSize,
  NonNegativeInt,
  Pixels,
  Width,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.attention import AttentionKind
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import TransformerSize, both_sides, transformer_size


@checked
class Vit(nnx.Module):
  """Patch and position embeddings, pre-norm transformer blocks, a norm, and pooling.

  Args:
    size: a name in `towers.sizes`, overridden by `width`, `depth`, `mlp_dim` and `num_heads`.
    patch: side of a patch in pixels.
    image_size: side, or (height, width), of the images in pixels.
    pool: "gap", the mean of the patches; "tok", a class token (never dropped); "map", a learned
      query that attends to all patches.
    positions: position embeddings, "learned" or "sincos2d" (fixed, as in MoCo v3).
    class_position: whether the class token also has a learned position embedding, in row 0 of
      `positions`.
    pre_norm: whether to add a norm before the blocks.
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
    pool: Literal["gap", "tok", "map"] = "gap",
    positions: Literal["learned", "sincos2d"] = "learned",
    class_position: bool = False,
    pre_norm: bool = False,
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
    if class_position and (pool, positions) != ("tok", "learned"):
      raise UserError(
        "class_position=True gives a class token a learned position, so it needs "
        'pool="tok" and positions="learned", '
        f"not pool={pool!r} and positions={positions!r}."
      )
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
    self.width, self.patch, self.image_size, self.pool = width, patch, (height, across), pool
    self.class_position, self.dtype = class_position, dtype
    self.embedding = layers.Linear(
      patch * patch * 3, width, bias=patch_bias, dtype=dtype, rngs=rngs
    )
    if positions == "learned":
      self.positions: nnx.Variable = nnx.Param(
        jax.random.normal(rngs.params(), (N + class_position, width)) / math.sqrt(width)
      )
    else:
      self.positions = FixedPositions(jnp.asarray(patches.sincos2d(*self.grid, width)))
    if pool == "tok":
      self.class_token = nnx.Param(jnp.zeros(width))
    self.pre_norm = layers.LayerNorm(width, norm_eps=norm_eps, dtype=dtype) if pre_norm else None
    self.stack = transformer.transformer_stack(
      width,
      depth,
      num_heads,
      mlp_dim,
      activation=activation,
      norm_eps=norm_eps,
      attention=attention,
      dtype=dtype,
      remat=remat,
      unroll=unroll,
      rngs=rngs,
    )
    self.norm = layers.LayerNorm(width, norm_eps=norm_eps, dtype=dtype)
    if pool == "map":
      self.head = transformer.MapHead(
        width, num_heads, mlp_dim, activation=activation, norm_eps=norm_eps, dtype=dtype, rngs=rngs
      )

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D].

    Args:
      keep: fraction of the patches kept, an independent random subset of each image (FLIP).
      key: one key per image, [B]; required if keep < 1.
    """
    if image.shape[1:3] != self.image_size:
      raise UserError(
        f"Vit expected images of {self.image_size[0]} x {self.image_size[1]}, but "
        f"got {image.shape[1]} x {image.shape[2]}. Set the tower's image_size and "
        "the crop's size to the same value."
      )
    height, width = (side // self.patch * self.patch for side in self.image_size)
    x = self.embedding(patches.patchify(image[:, :height, :width], self.patch))  # [B, N, D]
    positions = self.positions[...]
    x = layers.add_bias(x, positions[1:] if self.class_position else positions)
    if keep < 1:
      x = patches.patch_dropout(x, keep, key)  # [B, K, D]
    if self.pool == "tok":
      token = self.class_token[...]
      token = token + positions[0] if self.class_position else token
      token = layers.broadcast_param(token, (x.shape[0], 1, self.width), x.dtype)
      x = jnp.concatenate([token, x], axis=1)  # [B, K + 1, D]
    if self.pre_norm is not None:
      x = self.pre_norm(x)
    x = self.norm(self.stack(x))
    if self.pool == "gap":
      return shard_batch(x.mean(axis=1))
    return shard_batch(x[:, 0] if self.pool == "tok" else self.head(x))


class FixedPositions(nnx.Variable):
  """A constant array that belongs to the model and is neither trained nor updated."""
