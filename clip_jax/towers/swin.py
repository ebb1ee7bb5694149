"""Swin transformer: attention within windows that shift in every second block."""

from collections.abc import Sequence
import math
from typing import Annotated, Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import (
  ImageSize,
  NonNegativeInt,
  OneOf,
  Pixels,
  Range,
  Stages,
  Width,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.nn import layers, patches, transformer
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import both_sides

# Name -> blocks in each of the four stages, channels of the first stage.
SIZES = {
  "T": ((2, 2, 6, 2), 96),
  "S": ((2, 2, 18, 2), 96),
  "B": ((2, 2, 18, 2), 128),
  "L": ((2, 2, 18, 2), 192),
}
NORM_EPS = 1e-5
INIT = layers.normal(0.02)


@checked
class Swin(nnx.Module):
  """Stages of windowed attention; each halves the resolution and doubles the width.

  Images may have any size. A feature map that windows do not tile is padded, and the padding is
  masked; a map no longer than a window is a single window; a map with an odd side is zero-padded
  before it is halved. Sides that are multiples of 32 times the window, such as 224 for a window
  of 7, need no padding.

  Args:
    size: "T", "S", "B" or "L", overridden by `stages` and `width`.
    stages: blocks in each stage; even numbers, because every second block shifts its windows.
    width: channels of the first stage.
    window: side of a window, in positions of the feature map.
    head_width: channels of an attention head.
    patch: side of a patch in pixels.
    image_size: side, or (height, width), of the images in pixels.
    activation, dtype, remat: as in `Vit`.
    unroll: pairs of blocks per iteration of the compiled loop over a stage, as in `Stack`.

  Source: Liu et al. 2021 (Swin), sec. 3; initial values as in the authors' code; without stochastic
  depth.
  """

  def __init__(
    self,
    *,
    size: Annotated[str, OneOf(SIZES)] = "T",
    stages: Stages | None = None,
    width: Width | None = None,
    window: Annotated[int, Range(1, 2**10)] = 7,
    head_width: Width = 32,
    patch: Pixels = 4,
    image_size: ImageSize = 224,
    activation: layers.Activation = "gelu",
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    unroll: NonNegativeInt = 0,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype = resolve_dtype(dtype)
    named = SIZES[size]
    stages, width = tuple(stages or named[0]), width or named[1]
    if any(depth % 2 for depth in stages):
      raise UserError(
        "Swin's blocks come in pairs, the second with shifted windows, but stages="
        f"{stages} has odd numbers. Use even numbers, as in stages=(2, 2, 6, 2)."
      )
    if width % head_width:
      raise UserError(
        f"Swin's width {width} is not divisible by head_width={head_width}. Set "
        f"head_width to a divisor, as in head_width={math.gcd(width, head_width)}."
      )
    self.image_size, self.patch = both_sides(image_size), patch
    self.width = width * 2 ** (len(stages) - 1)
    self.embedding = layers.Linear(patch * patch * 3, width, dtype=dtype, rngs=rngs)
    self.embedding_norm = layers.LayerNorm(width, norm_eps=NORM_EPS, dtype=dtype)
    stacks, norms, mergers = [], [], []
    for i, depth in enumerate(stages):
      channels = width * 2**i
      if i:
        norms.append(layers.LayerNorm(2 * channels, norm_eps=NORM_EPS, dtype=dtype))
        mergers.append(
          layers.Linear(2 * channels, channels, bias=False, init=INIT, dtype=dtype, rngs=rngs)
        )
      make = lambda rngs: SwinBlockPair(
        channels, channels // head_width, window, activation=activation, dtype=dtype, rngs=rngs
      )
      stacks.append(transformer.Stack(make, depth // 2, remat=remat, unroll=unroll, rngs=rngs))
    self.stacks = nnx.List(stacks)
    self.norms, self.mergers = nnx.List(norms), nnx.List(mergers)
    self.norm = layers.LayerNorm(self.width, norm_eps=NORM_EPS, dtype=dtype)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    patches.check_no_patch_dropout(keep, "a Swin needs all of them for its windows")
    x = self.embedding_norm(self.embedding(patches.patchify_map(image, self.patch)))
    x = self.stacks[0](x)  # [B, H / patch, W / patch, width]
    for norm, merger, stack in zip(self.norms, self.mergers, self.stacks[1:]):
      x = stack(merger(norm(patches.patchify_map(x, 2))))  # Half the resolution, twice the width.
    return shard_batch(self.norm(x).mean(axis=(1, 2)))


class SwinBlockPair(nnx.Module):
  """A block with regular windows, then one with windows shifted by half a window."""

  def __init__(
    self, width: int, num_heads: int, window: int, *, activation: str, dtype: str, rngs: nnx.Rngs
  ):
    make = lambda shifted: SwinBlock(
      width, num_heads, window, shifted=shifted, activation=activation, dtype=dtype, rngs=rngs
    )
    self.plain, self.shifted = make(False), make(True)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    return self.shifted(self.plain(x))


class SwinBlock(nnx.Module):
  """A pre-norm transformer block with windowed attention."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    window: int,
    *,
    shifted: bool,
    activation: str,
    dtype: str,
    rngs: nnx.Rngs,
  ):
    self.norm_attention = layers.LayerNorm(width, norm_eps=NORM_EPS, dtype=dtype)
    self.attention = WindowAttention(
      width, num_heads, window, shifted=shifted, dtype=dtype, rngs=rngs
    )
    self.norm_mlp = layers.LayerNorm(width, norm_eps=NORM_EPS, dtype=dtype)
    self.mlp = layers.Mlp(
      width, 4 * width, activation=activation, init=INIT, dtype=dtype, rngs=rngs
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    x = x + self.attention(self.norm_attention(x))
    return shard_batch(x + self.mlp(self.norm_mlp(x)))


class WindowAttention(nnx.Module):
  """Attention within each window of a feature map, with a relative position bias.

  To shift the windows, the map is rolled cyclically towards its top left corner. Positions that
  wrap around are masked from the others in their window.

  Source: Liu et al. 2021, sec. 3.2, eq. 4, fig. 4.
  """

  def __init__(
    self, width: int, num_heads: int, window: int, *, shifted: bool, dtype: str, rngs: nnx.Rngs
  ):
    self.attention = transformer.Attention(width, num_heads, init=INIT, dtype=dtype, rngs=rngs)
    side = 2 * window - 1
    self.bias = nnx.Param(INIT(rngs.params(), (side, side, num_heads)))  # By relative position.
    self.window, self.shifted = window, shifted

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    M, (H, W) = self.window, x.shape[1:3]
    # An axis no longer than a window has a single window of its length, which is not shifted.
    sides = [min(M, length) for length in (H, W)]
    shift = [M // 2 if self.shifted and length > M else 0 for length in (H, W)]
    padding = [-length % side for length, side in zip((H, W), sides)]
    mask = window_mask((H, W), sides, shift, padding)  # [windows, n, n]
    bias = self.bias[...][relative_position_index(sides, M)]  # [n, n, heads]
    bias = bias.transpose(2, 0, 1)[None]
    x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
    x = window_partition(_roll(x, shift, -1), sides)  # [B, windows, n, C]
    x = self.attention(x, None if mask is None else mask[:, None, None], bias)
    x = _roll(window_reverse(x, sides, (H + padding[0], W + padding[1])), shift, 1)
    return x[:, :H, :W]


def window_mask(
  shape: Sequence[int], sides: Sequence[int], shift: Sequence[int], padding: Sequence[int]
) -> np.ndarray | None:
  """Attention mask within windows, bool [windows, n, n]; None if all positions see each other.

  Args:
    shape: (height, width) of the feature map.
    sides: (height, width) of a window.
    shift: rows and columns that windows are shifted by.
    padding: rows and columns of zeros at the bottom and right of the map.
  """
  if not any(shift) and not any(padding):
    return None
  # Along each axis, positions either wrapped around, did not, or are padding.
  kinds = [
    np.roll(np.repeat([1, 0, 2], [s, length - s, p]), -s)
    for length, s, p in zip(shape, shift, padding)
  ]
  kind = 3 * kinds[0][:, None] + kinds[1]
  kind = window_partition(kind[None, :, :, None], sides)[0, ..., 0]  # [windows, n]
  return kind[:, :, None] == kind[:, None, :]


def relative_position_index(sides: Sequence[int], window: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column in the bias table of each pair of positions in a window, int [n, n] each."""
  y, x = np.mgrid[: sides[0], : sides[1]].reshape(2, -1)
  return y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1


def window_partition(x: Any, sides: Sequence[int]) -> Any:
  """Splits a map into windows, row by row: [B, H, W, C] -> [B, windows, n, C]."""
  B, H, W, C = x.shape
  h, w = sides
  return x.reshape(B, H // h, h, W // w, w, C).swapaxes(2, 3).reshape(B, -1, h * w, C)


def window_reverse(x: jax.Array, sides: Sequence[int], shape: Sequence[int]) -> jax.Array:
  """Inverse of `window_partition`: [B, windows, n, C] -> [B, H, W, C], with (H, W) = `shape`."""
  (H, W), (h, w) = shape, sides
  B = x.shape[0]  # len() fails if the batch size is symbolic, as in an export.
  return x.reshape(B, H // h, W // w, h, w, -1).swapaxes(2, 3).reshape(B, H, W, -1)


def _roll(x, shift, direction):
  return jnp.roll(x, [direction * s for s in shift], (1, 2)) if any(shift) else x
