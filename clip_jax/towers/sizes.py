"""Sizes of towers and of what they look at.

Transformers as big_vision names them: width, depth, hidden width of the MLP, heads.
"""

from clip_jax.errors import UserError

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


def transformer_size(size: str, width: int | None, depth: int | None, mlp: int | None,
                     heads: int | None) -> tuple[int, int, int, int]:
  """(width, depth, mlp, heads) of a named size, each replaced by its argument where that is given.

  A width of one's own brings an MLP of four times that and heads of 64.
  """
  if size not in SIZES:
    raise UserError(f"There is no transformer size {size!r}; there are {', '.join(SIZES)}. "
                    "Or give width, depth, mlp and heads.")
  named = SIZES[size]
  if width is not None and width != named[0]:
    named = (width, named[1], 4 * width, max(1, width // 64))
  width, depth, mlp, heads = (
      n if given is None else given for given, n in zip((width, depth, mlp, heads), named))
  return width, depth, mlp, heads


def both_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
  """(height, width) of images in pixels, from these or from the side of a square.

  Raises:
    UserError: it is neither.
  """
  sides = (image_size, image_size) if isinstance(image_size, int) else image_size
  if not (isinstance(sides, (tuple, list)) and len(sides) == 2
          and all(isinstance(side, int) and side > 0 for side in sides)):
    raise UserError(f"image_size {image_size!r} is not the side of a square, or (height, width), "
                    "in pixels, as 224 and (224, 288) are.")
  height, width = sides
  return height, width


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
  """(rows, columns) of patches; raises unless the image divides into them."""
  height, width = image_size
  if height % patch or width % patch:
    raise UserError(f"An image of {height} x {width} does not divide into patches of {patch} x "
                    f"{patch}. Nearest height that does: {max(1, round(height / patch)) * patch}.")
  return height // patch, width // patch
