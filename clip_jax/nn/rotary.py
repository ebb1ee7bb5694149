"""Rotary position embeddings: queries and keys rotated by angles that depend on their position.

Source: Su et al. 2021 (RoFormer), sec. 3.2; on two axes as in EVA-02 (Fang et al. 2023, sec. 2.1).
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import OneOf
from clip_jax.errors import UserError

# Ways to rotate image patches. "axial" rotates the first half of a head by the row and the second
# by the column, counted from 0, with wavelengths up to 10,000 patches. "axial_xy" has columns first
# and counts from 1. "centered" has coordinates from -1 to 1 and wavelengths of 1 to 100 of half
# their unit, and pairs channel i with channel i + D/2 of the head; the others pair 2i and 2i + 1.
ROTARY = {
  "none": "no rotation",
  "axial": "rows and columns, as in EVA-02",
  "axial_xy": "columns and rows, as in Meta's Perception Encoder",
  "centered": "coordinates relative to the centre, as in DINOv3",
}
Rotary = Annotated[str, OneOf(ROTARY)]


class Rotation(NamedTuple):
  """Rotations of the pairs of channels of each token, by angles in radians.

  Attributes:
    cos, sin: cosine and sine of the angles, float32 [N, D/2h] or [B, N, D/2h].
    half: whether channel i is paired with channel i + D/2h of its head; otherwise 2i with 2i + 1.
  """

  cos: jax.Array | np.ndarray
  sin: jax.Array | np.ndarray
  half: bool

  def of_tokens(self, index: jax.Array) -> "Rotation":
    """Returns the rotations of the tokens with these indices, int [B, K]."""
    return Rotation(jnp.asarray(self.cos)[index], jnp.asarray(self.sin)[index], self.half)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates queries or keys, [B, N, heads, D/h], in float32; returns the dtype of x."""
  cos, sin = rotation.cos[..., None, :], rotation.sin[..., None, :]  # The same for all heads.
  pairs = (2, -1) if rotation.half else (-1, 2)
  axis = -2 if rotation.half else -1
  a, b = jnp.split(x.astype(jnp.float32).reshape(*x.shape[:-1], *pairs), 2, axis=axis)
  a, b = a.squeeze(axis), b.squeeze(axis)
  turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=axis)
  return turned.reshape(x.shape).astype(x.dtype)


def _rotation(angles, half):
  return Rotation(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), half)


def grid_rotation(
  kind: str,
  grid: tuple[int, int],
  head_dim: int,
  *,
  reference: tuple[int, int] | None = None,
  prefix: int = 0,
) -> Rotation:
  """Returns the rotation of the patches of an image.

  Args:
    kind: a name in `ROTARY` other than "none".
    grid: (rows, columns) of patches.
    head_dim: D/h, a multiple of 4.
    reference: the grid that positions are scaled to, by default `grid`: a model that is tuned at
      another image size keeps the angles it was trained with. "centered" needs none.
    prefix: number of tokens before the patches that are not rotated.

  Returns:
    A `Rotation` with float32 [prefix + rows * columns, D/2h], row by row.

  Raises:
    UserError: `head_dim` is not a multiple of 4.
  """
  if head_dim % 4:
    raise UserError(
      f"rotary={kind!r} needs heads with a width that is a multiple of 4, not {head_dim}. Choose "
      "num_heads so that width / num_heads is one."
    )
  bands = np.arange(head_dim // 4) / (head_dim // 4)
  if kind == "centered":
    at = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid]
    bands = 2 * math.pi / 100.0**bands
  else:
    first = 1 if kind == "axial_xy" else 0
    at = [(np.arange(n) + first) / n * to for n, to in zip(grid, reference or grid)]
    bands = 1 / 10_000.0**bands
  y, x = np.meshgrid(*at, indexing="ij")
  axes = (x, y) if kind == "axial_xy" else (y, x)
  angles = np.concatenate([axis.reshape(-1, 1) * bands for axis in axes], axis=1)
  angles = np.concatenate([np.zeros((prefix, head_dim // 2)), angles])
  return _rotation(angles, kind == "centered")


def text_rotation(length: int, head_dim: int, *, prefix: int = 0) -> Rotation:
  """Returns the rotation of `length` tokens, whose first `prefix` tokens are not rotated.

  Wavelengths go from 2 pi to 10,000 * 2 pi tokens, as in RoFormer, eq. 15.
  """
  if head_dim % 2:
    raise UserError(
      f"rotary=True needs heads with an even width, not {head_dim}. Choose num_heads so that "
      "width / num_heads is even."
    )
  bands = 10_000.0 ** -(np.arange(head_dim // 2) / (head_dim // 2))
  at = np.concatenate([np.zeros(prefix), np.arange(length - prefix)])
  return _rotation(at[:, None] * bands, half=False)
