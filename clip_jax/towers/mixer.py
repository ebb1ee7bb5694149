"""MLP-Mixer: alternating MLPs over the tokens and over the channels."""

import math
from typing import Annotated, Any

from flax import nnx
import jax

from clip_jax.cli.values import (
  ImageSize,
  NonNegativeInt,
  OneOf,
  Pixels,
  Range,
  Width,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import both_sides, patch_grid

# Name -> width, depth. The hidden width of the channel MLP is 4 times, that of the token MLP half
# the width.
SIZES = {"S": (512, 8), "B": (768, 12), "L": (1024, 24), "H": (1280, 32)}


@checked
class MlpMixer(nnx.Module):
  """Patch embedding, blocks that mix tokens and then channels, a norm, and mean pooling.

  Args:
    size: "S", "B", "L" or "H", overridden by `width` and `depth`.
    patch: side of a patch in pixels.
    image_size: side, or (height, width), of the images in pixels. The tower takes only this size,
      because the token MLP has a weight for every patch position.
    mlp_dim, token_mlp_dim: hidden widths of the channel and the token MLP; by default 4 times and
      half the width.
    activation, dtype, remat, unroll: as in `Vit`.

  Source: Tolstikhin et al. 2021, sec. 2 and table 1; initial values as in the authors' code.
  """

  def __init__(
    self,
    *,
    size: Annotated[str, OneOf(SIZES)] = "B",
    patch: Pixels = 16,
    image_size: ImageSize = 224,
    width: Annotated[int, Range(2, 2**20)] | None = None,
    depth: Annotated[int, Range(1, 2**16)] | None = None,
    mlp_dim: Width | None = None,
    token_mlp_dim: Width | None = None,
    activation: layers.Activation = "gelu_tanh",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    dtype = resolve_dtype(dtype)
    named = SIZES[size]
    width, depth = width or named[0], depth or named[1]
    self.image_size, self.patch, self.width = both_sides(image_size), patch, width
    self.dtype = dtype
    N = math.prod(patch_grid(self.image_size, patch))
    init = jax.nn.initializers.lecun_normal()
    self.embedding = layers.Linear(patch * patch * 3, width, init=init, dtype=dtype, rngs=rngs)
    make = lambda rngs: MixerBlock(
      N,
      width,
      token_mlp_dim or width // 2,
      mlp_dim or 4 * width,
      activation=activation,
      dtype=dtype,
      rngs=rngs,
    )
    self.stack = transformer.Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)
    self.norm = layers.LayerNorm(width, dtype=dtype)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    patches.check_no_patch_dropout(keep, "an MlpMixer has weights for each of them")
    if image.shape[1:3] != self.image_size:
      raise UserError(
        f"MlpMixer expected images of {self.image_size[0]} x "
        f"{self.image_size[1]}, but got {image.shape[1]} x {image.shape[2]}; its "
        "token MLPs fit no other size. Set the tower's image_size and the crop's "
        "size to the same value."
      )
    x = self.embedding(patches.patchify(image, self.patch))  # [B, N, D]
    return shard_batch(self.norm(self.stack(x)).mean(axis=1))


class MixerBlock(nnx.Module):
  """An MLP over the tokens of each channel, then one over the channels of each token."""

  def __init__(
    self,
    tokens: int,
    width: int,
    token_mlp_dim: int,
    mlp_dim: int,
    *,
    activation: str,
    dtype: str,
    rngs: nnx.Rngs,
  ):
    options: dict[str, Any] = dict(
      activation=activation, init=jax.nn.initializers.lecun_normal(), dtype=dtype, rngs=rngs
    )
    self.norm_tokens = layers.LayerNorm(width, dtype=dtype)
    self.tokens = layers.Mlp(tokens, token_mlp_dim, **options)
    self.norm_channels = layers.LayerNorm(width, dtype=dtype)
    self.channels = layers.Mlp(width, mlp_dim, **options)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    x = x + self.tokens(self.norm_tokens(x).swapaxes(1, 2)).swapaxes(1, 2)
    return shard_batch(x + self.channels(self.norm_channels(x)))
