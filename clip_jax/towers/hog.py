"""Histograms of oriented gradients and mean colours, features that need no training."""

import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import ImageSize, Pixels, Width, checked
from clip_jax.errors import UserError
from clip_jax.nn.patches import check_no_patch_dropout
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.parallel.placement import shard_batch
from clip_jax.towers.sizes import both_sides, patch_grid

ENERGY_FLOOR = 4e-3  # Added to a cell's energy, so that noise in plain areas is not amplified.


@checked
class Hog(nnx.Module):
  """Edge histograms and mean colours of each cell of the image; it has no parameters.

  A few thousand pairs are too few to learn good filters. Combined with a learned tower (see
  `ConcatTowers`), these features add what it misses, at little cost. The features have a standard
  deviation of about 1 on drawings.

  Args:
    image_size: side, or (height, width), of the images in pixels.
    cell: side of a cell in pixels, or several sides, multiples of the first, whose features are
      concatenated. Edges are computed once for all of them.
    orientations: number of histogram bins, over 180 degrees.
    dtype: dtype of the features, which are computed in float32.

  Source: Dalal & Triggs 2005, sec. 6. Here, each cell is normalised once, by the energy of the
  3 x 3 cells around it; there, once for each of the four blocks that contain it.
  """

  def __init__(
    self,
    *,
    image_size: ImageSize = 224,
    cell: Pixels | tuple[Pixels, ...] = 8,
    orientations: Width = 9,
    dtype: Dtype = "auto",
  ):
    dtype = resolve_dtype(dtype, convolutional=True)
    self.image_size, self.orientations, self.dtype = both_sides(image_size), orientations, dtype
    self.cells = cell if isinstance(cell, tuple) else (cell,)
    if not self.cells or any(side % self.cells[0] for side in self.cells):
      raise UserError(f"cell={cell!r}: set one side, or several that are multiples of the first.")
    grids = [patch_grid(self.image_size, side) for side in self.cells]
    self.width = sum(math.prod(grid) for grid in grids) * (orientations + 3)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D]."""
    check_no_patch_dropout(keep, "a Hog has none")
    if image.shape[1:3] != self.image_size:
      raise UserError(
        f"Hog expected images of {self.image_size[0]} x {self.image_size[1]}, but got "
        f"{image.shape[1]} x {image.shape[2]}. Set the tower's image_size and the crop's size to "
        "the same value."
      )
    image = image.astype(jnp.float32)
    finest, B = self.cells[0], image.shape[0]
    edges = _unnormalised(image, finest, self.orientations)
    colours = _cell_means(image, finest)  # [B, h, w, 3]
    features = []
    for cell in self.cells:
      found, mean = (_cell_means(x, cell // finest) for x in (edges, colours))
      x = jnp.concatenate([4 * _normalised(found), 2 * mean], axis=-1)
      features.append(x.reshape(B, -1))
    return shard_batch(jnp.concatenate(features, axis=-1).astype(self.dtype))


def histograms(image: jax.Array, *, cell: int, orientations: int) -> jax.Array:
  """Computes a histogram of gradient orientations for each cell, normalised by its surroundings.

  Each pixel contributes the gradient of the channel where it is steepest, split between the two
  nearest orientation bins.

  Args:
    image: float32 [B, H, W, 3].
    cell: side of a cell in pixels; divides H and W.
    orientations: number of bins over 180 degrees, O.

  Returns:
    float32 [B, H / cell, W / cell, O], at least 0.
  """
  return _normalised(_unnormalised(image, cell, orientations))


def _unnormalised(image, cell, orientations):
  """Sums of gradients by orientation, divided by the cell's area, [B, h, w, O]."""
  # One array per channel and per bin, [B, H, W], which compilers vectorise along W.
  along, down = _steepest(image)
  turn = jnp.arctan2(down, along) / math.pi * orientations  # In [-O, O]; half a turn is O.
  turn = jnp.where(turn < 0, turn + orientations, turn)
  strength = jnp.hypot(along, down)
  near = lambda bin: jax.nn.relu(1 - jnp.abs(turn - bin))
  shares = [near(0) + near(orientations), *(near(bin) for bin in range(1, orientations))]
  return jnp.concatenate(
    [_cell_means((strength * share)[..., None], cell) for share in shares], axis=-1
  )


def _steepest(image):
  """Differences along and down, [B, H, W] each, of the channel where they are largest."""
  strongest, found = None, None
  for c in range(3):
    x = jnp.pad(image[..., c], ((0, 0), (1, 1), (1, 1)), mode="edge")
    along, down = x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]
    energy = along**2 + down**2
    if found is None:
      strongest, found = energy, (along, down)
      continue
    larger = energy > strongest
    strongest = jnp.maximum(energy, strongest)
    found = jnp.where(larger, along, found[0]), jnp.where(larger, down, found[1])
  return found


def _normalised(cells):
  """Divides each cell by the energy of the 3 x 3 cells around it."""
  energy = jnp.square(cells).sum(-1, keepdims=True)
  energy = jnp.pad(energy, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  energy = lax.reduce_window(energy, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID") / 9
  return cells * lax.rsqrt(energy + ENERGY_FLOOR)


def _cell_means(x, cell):
  """Averages over each cell: [B, H, W, C] -> [B, H / cell, W / cell, C]."""
  if cell == 1:
    return x
  B, H, W, C = x.shape
  return x.reshape(B, H // cell, cell, W // cell, cell, C).mean(axis=(2, 4))
