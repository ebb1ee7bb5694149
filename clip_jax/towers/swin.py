"""The Swin transformer: attention within windows, which shift from block to block."""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import layers
from clip_jax.errors import UserError
from clip_jax.sharding import on_rows
from clip_jax.target import computed_in
from clip_jax.towers.sizes import both_sides

# Blocks in each of the four stages, and channels of the first.
SIZES = {
    "T": ((2, 2, 6, 2), 96),
    "S": ((2, 2, 18, 2), 96),
    "B": ((2, 2, 18, 2), 128),
    "L": ((2, 2, 18, 2), 192),
}
EPSILON = 1e-5
INIT = layers.normal(0.02)


class Swin(nnx.Module):
  """Stages of windowed attention, each half as fine and twice as wide as the one before.

  Images may have any size. A map that windows do not divide is padded, and nothing looks at the
  padding; a map no longer than a window is one window; a map that does not halve evenly gets a row
  or column of zeros. Multiples of 32 times the window, as 224 is of 7, waste nothing.

  Args:
    size: "T", "S", "B" or "L"; `stages` and `width` replace its numbers.
    stages: blocks in each stage, even numbers: every second block shifts its windows.
    width: channels of the first stage.
    window: side of a window, in places of the map.
    head_width: channels of an attention head.
    patch: side of a patch in pixels.
    image_size: side, or (height, width), of the images in pixels.
    activation, dtype, remat: as of `Vit`.
    unroll: pairs of blocks per turn of the compiled loop over the pairs of a stage, as of `Stack`.

  Source: Liu et al. 2021 (Swin), sec. 3; initial values as in the authors' code; without stochastic
  depth.
  """

  def __init__(self, *, size: str = "T", stages: tuple[int, ...] | None = None,
               width: int | None = None, window: int = 7, head_width: int = 32, patch: int = 4,
               image_size: int | tuple[int, int] = 224, activation: str = "gelu",
               dtype: str = "auto", remat: str = "none", unroll: int = 0, rngs: nnx.Rngs):
    dtype = computed_in(dtype)
    named = layers.one_of(SIZES, size, "Swin size")
    stages, width = tuple(stages or named[0]), width or named[1]
    if any(depth % 2 for depth in stages):
      raise UserError("Swin's blocks come in pairs, the second with shifted windows, but stages="
                      f"{stages} has odd numbers. Set even ones, as in stages=(2, 2, 6, 2).")
    if width % head_width:
      raise UserError(f"Swin's width {width} does not divide into heads of {head_width}. Set "
                      f"head_width to a divisor, as in head_width={math.gcd(width, head_width)}.")
    self.image_size, self.patch = both_sides(image_size), patch
    self.width = width * 2 ** (len(stages) - 1)
    self.embedding = layers.Linear(patch * patch * 3, width, dtype=dtype, rngs=rngs)
    self.embedding_norm = layers.LayerNorm(width, epsilon=EPSILON, dtype=dtype)
    stacks, norms, mergers = [], [], []
    for i, depth in enumerate(stages):
      channels = width * 2**i
      if i:
        norms.append(layers.LayerNorm(2 * channels, epsilon=EPSILON, dtype=dtype))
        mergers.append(layers.Linear(2 * channels, channels, bias=False, init=INIT, dtype=dtype,
                                     rngs=rngs))
      make = lambda rngs: Pair(channels, channels // head_width, window, activation=activation,
                               dtype=dtype, rngs=rngs)
      stacks.append(layers.Stack(make, depth // 2, remat=remat, unroll=unroll, rngs=rngs))
    self.stacks = nnx.List(stacks)
    self.norms, self.mergers = nnx.List(norms), nnx.List(mergers)
    self.norm = layers.LayerNorm(self.width, epsilon=EPSILON, dtype=dtype)

  def __call__(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
               key: jax.Array | None = None) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    layers.check_keeps_all(keep, "a Swin's windows are made of all of them")
    x = self.embedding_norm(self.embedding(layers.squares(image, self.patch)))
    x = self.stacks[0](x)                                    # [B, H / patch, W / patch, width]
    for norm, merger, stack in zip(self.norms, self.mergers, self.stacks[1:]):
      x = stack(merger(norm(layers.squares(x, 2))))          # Half as fine, twice as wide.
    return on_rows(self.norm(x).mean(axis=(1, 2)))


class Pair(nnx.Module):
  """A block with windows side by side from the corner on, and one with windows shifted by half."""

  def __init__(self, width: int, heads: int, window: int, *, activation: str, dtype: str,
               rngs: nnx.Rngs):
    make = lambda shifted: SwinBlock(width, heads, window, shifted=shifted, activation=activation,
                                     dtype=dtype, rngs=rngs)
    self.plain, self.shifted = make(False), make(True)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same."""
    return self.shifted(self.plain(x))


class SwinBlock(nnx.Module):
  """A pre-norm transformer block whose attention stays within windows."""

  def __init__(self, width: int, heads: int, window: int, *, shifted: bool, activation: str,
               dtype: str, rngs: nnx.Rngs):
    self.norm_attention = layers.LayerNorm(width, epsilon=EPSILON, dtype=dtype)
    self.attention = WindowAttention(width, heads, window, shifted=shifted, dtype=dtype, rngs=rngs)
    self.norm_mlp = layers.LayerNorm(width, epsilon=EPSILON, dtype=dtype)
    self.mlp = layers.Mlp(width, 4 * width, activation=activation, init=INIT, dtype=dtype,
                          rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same."""
    x = x + self.attention(self.norm_attention(x))
    return on_rows(x + self.mlp(self.norm_mlp(x)))


class WindowAttention(nnx.Module):
  """Attention of the places in each window of a map to one another, with a bias for each offset.

  Shifted windows are those of the map moved towards its corner; what that pushes over the edge
  comes in again at the other end, where it fills windows up and sees nothing but its like.

  Source: Liu et al. 2021, sec. 3.2, eq. 4, fig. 4.
  """

  def __init__(self, width: int, heads: int, window: int, *, shifted: bool, dtype: str,
               rngs: nnx.Rngs):
    self.attention = layers.Attention(width, heads, init=INIT, dtype=dtype, rngs=rngs)
    side = 2 * window - 1
    self.bias = nnx.Param(INIT(rngs.params(), (side, side, heads)))         # By offset.
    self.window, self.shifted = window, shifted

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same."""
    M, (H, W) = self.window, x.shape[1:3]
    # Along an axis no longer than a window there is one, as long as the axis, and no shift.
    sides = [min(M, length) for length in (H, W)]
    shift = [M // 2 if self.shifted and length > M else 0 for length in (H, W)]
    padding = [-length % side for length, side in zip((H, W), sides)]
    mask = visible((H, W), sides, shift, padding)                           # [windows, n, n]
    bias = self.bias[...][offsets(sides, M)].transpose(2, 0, 1)[None]       # [1, heads, n, n]
    x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
    x = windows(_rolled(x, shift, -1), sides)                               # [B, windows, n, C]
    x = self.attention(x, None if mask is None else mask[:, None, None], bias)
    x = _rolled(unwindowed(x, sides, (H + padding[0], W + padding[1])), shift, 1)
    return x[:, :H, :W]


def visible(shape: Sequence[int], sides: Sequence[int], shift: Sequence[int],
            padding: Sequence[int]) -> np.ndarray | None:
  """Which places of a window see each other, bool [windows, n, n]; None where all do.

  Args:
    shape, sides, shift, padding: of the map, its windows, their shift, and zeros at the map's end;
      along height and width each.
  """
  if not any(shift) and not any(padding):
    return None
  # Along each axis there is what came in at the other end, what did not, and padding.
  kinds = [np.roll(np.repeat([1, 0, 2], [s, length - s, p]), -s)
           for length, s, p in zip(shape, shift, padding)]
  kind = 3 * kinds[0][:, None] + kinds[1]
  kind = windows(kind[None, :, :, None], sides)[0, ..., 0]                  # [windows, n]
  return kind[:, :, None] == kind[:, None, :]


def offsets(sides: Sequence[int], window: int) -> tuple[np.ndarray, np.ndarray]:
  """Where the bias of two places of a window lies in its table: rows and columns, int [n, n]."""
  y, x = np.mgrid[:sides[0], :sides[1]].reshape(2, -1)
  return y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1


def windows(x: Any, sides: Sequence[int]) -> Any:
  """[B, H, W, C] -> [B, windows, n, C], row by row."""
  B, H, W, C = x.shape
  h, w = sides
  return x.reshape(B, H // h, h, W // w, w, C).swapaxes(2, 3).reshape(B, -1, h * w, C)


def unwindowed(x: jax.Array, sides: Sequence[int], shape: Sequence[int]) -> jax.Array:
  """[B, windows, n, C] -> [B, H, W, C], for H and W in `shape`."""
  (H, W), (h, w) = shape, sides
  B = x.shape[0]  # Which len() would not give where it is a symbol, as in an export.
  return x.reshape(B, H // h, W // w, h, w, -1).swapaxes(2, 3).reshape(B, H, W, -1)


def _rolled(x, shift, direction):
  return jnp.roll(x, [direction * s for s in shift], (1, 2)) if any(shift) else x
