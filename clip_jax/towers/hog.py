"""Histograms of oriented gradients and mean colours: features that need no training."""

import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.layers import check_keeps_all
from clip_jax.sharding import on_rows
from clip_jax.target import computed_in
from clip_jax.towers.sizes import both_sides, patch_grid

FLOOR = 4e-3  # Of a cell's energy: a plain area has no contrast to be enlarged.


class Hog(nnx.Module):
  """What edges and colours each cell of the image has; nothing in it is learned.

  With a few thousand pairs filters are learned badly, and these beside a learned tower (see
  `Beside`) find what it misses, at little cost. Features have deviations of about 1 on drawings.

  Args:
    image_size: side, or (height, width), of the images in pixels.
    cell: side of a cell in pixels.
    orientations: of a cell's histogram, over half a turn.
    dtype: of the features, which are computed in float32.

  Source: Dalal & Triggs 2005, sec. 6; a cell is divided by the energy of the 3 x 3 around it, where
  theirs stands in the four blocks that it belongs to.
  """

  def __init__(self, *, image_size: int | tuple[int, int] = 224, cell: int = 8,
               orientations: int = 9, dtype: str = "auto"):
    dtype = computed_in(dtype)
    self.image_size, self.cell, self.orientations = both_sides(image_size), cell, orientations
    self.dtype = dtype
    self.width = math.prod(patch_grid(self.image_size, cell)) * (orientations + 3)

  def __call__(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
               key: jax.Array | None = None) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    check_keeps_all(keep, "a Hog has none")
    if image.shape[1:3] != self.image_size:
      raise UserError(
          f"This Hog was made for images of {self.image_size[0]} x {self.image_size[1]} and got "
          f"{image.shape[1]} x {image.shape[2]}. Set image_size of the tower and size of the crop "
          "to the same.")
    image = image.astype(jnp.float32)
    edges = histograms(image, cell=self.cell, orientations=self.orientations)
    colours = _means(image, self.cell)                                      # [B, h, w, 3]
    x = jnp.concatenate([4 * edges, 2 * colours], axis=-1)
    return on_rows(x.reshape(x.shape[0], -1).astype(self.dtype))


def histograms(image: jax.Array, *, cell: int, orientations: int) -> jax.Array:
  """How strong edges of each orientation are in each cell, beside the edges around it.

  A pixel counts with the channel that has the steepest gradient there, for the two orientations
  nearest to its own.

  Args:
    image: float32 [B, H, W, 3].
    cell: side in pixels; divides H and W.
    orientations: O, over half a turn.

  Returns:
    float32 [B, H / cell, W / cell, O], at least 0.
  """
  edged = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  along = edged[:, 1:-1, 2:] - edged[:, 1:-1, :-2]                          # [B, H, W, 3]
  down = edged[:, 2:, 1:-1] - edged[:, :-2, 1:-1]
  steepest = jnp.argmax(along**2 + down**2, axis=-1, keepdims=True)
  along, down = (jnp.take_along_axis(d, steepest, axis=-1)[..., 0] for d in (along, down))
  turn = jnp.arctan2(down, along) / math.pi * orientations                  # [B, H, W]
  away = jnp.abs(turn[..., None] - jnp.arange(orientations)) % orientations
  share = jax.nn.relu(1 - jnp.minimum(away, orientations - away))           # [B, H, W, O]
  cells = _means(jnp.hypot(along, down)[..., None] * share, cell)           # [B, h, w, O]
  energy = jnp.square(cells).sum(-1, keepdims=True)
  energy = jnp.pad(energy, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  energy = lax.reduce_window(energy, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID") / 9
  return cells * lax.rsqrt(energy + FLOOR)


def _means(x, cell):
  """[B, H, W, C] -> [B, H / cell, W / cell, C]."""
  B, H, W, C = x.shape
  return x.reshape(B, H // cell, cell, W // cell, cell, C).mean(axis=(2, 4))
