"""Sizes of transformers, images and patch grids."""

from typing import Annotated

from clip_jax.cli.values import OneOf
from clip_jax.errors import UserError

# big_vision's names -> width, depth, hidden width of the MLP, number of heads.
SIZES = {
  "mu": (32, 1, 128, 2),
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "M": (512, 12, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "g-opt": (1536, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
  "G-opt": (1536, 48, 8192, 16),
  "e": (1792, 56, 15360, 16),
}
TransformerSize = Annotated[str, OneOf(SIZES)]


def transformer_size(
  size: str, width: int | None, depth: int | None, mlp_dim: int | None, num_heads: int | None
) -> tuple[int, int, int, int]:
  """Returns (width, depth, mlp_dim, num_heads) of a named size, overridden where not None.

  With another width, mlp_dim defaults to 4 times that width, and num_heads to heads of width 64.
  """
  if size not in SIZES:
    raise UserError(
      f"Unknown transformer size {size!r}; choose from {', '.join(SIZES)}. To use "
      "other dimensions, set width, depth, mlp_dim and num_heads."
    )
  named = SIZES[size]
  if width is not None and width != named[0]:
    named = (width, named[1], 4 * width, max(1, width // 64))
  width, depth, mlp_dim, num_heads = (
    n if given is None else given for given, n in zip((width, depth, mlp_dim, num_heads), named)
  )
  return width, depth, mlp_dim, num_heads


def both_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns the (height, width) of images in pixels; `image_size` may be the side of a square."""
  if not isinstance(image_size, (tuple, list)):
    return image_size, image_size
  height, width = image_size
  return height, width


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
  """Returns (rows, columns) of patches; raises `UserError` unless patches tile the image."""
  height, width = image_size
  if height % patch or width % patch:
    raise UserError(
      f"A {height} x {width} image cannot be divided into {patch} x {patch} patches. "
      f"Nearest valid height: {max(1, round(height / patch)) * patch}."
    )
  return height // patch, width // patch
