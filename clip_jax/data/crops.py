"""An image to a square of pixels: random crops for training, fixed ones for evaluation.

Everything is resized with Pillow's antialiased bicubic filter, from the box of pixels that is kept,
unless a host is too slow for that.
"""

import math
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.decode import Picture
from clip_jax.errors import UserError


class RandomResizedCrop:
  """A random part of the image, resized; `__call__(image, rng)`.

  The box has a random share of the area and a random aspect ratio (log-uniform), and lies anywhere
  inside. If ten draws do not fit, it is the largest central box with a permitted aspect ratio.

  Source: Szegedy et al. 2015, as in torchvision's RandomResizedCrop.
  """

  def __init__(self, size: int | tuple[int, int], scale: tuple[float, float] = (0.5, 1.0),
               ratio: tuple[float, float] = (3 / 4, 4 / 3), squash: bool = False,
               shrink: bool = True, resize: str = "bicubic"):
    """Notes how to crop.

    Args:
      size: pixels a side, or (height, width).
      scale: least and greatest share of the area. SLIP uses (0.5, 1) for the view beside the text
        and (0.08, 1) for the others.
      ratio: least and greatest width / height of the box.
      squash: whether that is width / height once the image was squashed to a square. Then wide
        images are seen as distorted as `Resize(mode="squash")` shows them in evaluation; as a rule
        they are not, which matters where many are far from square.
      shrink: whether a JPEG of which the box is at least twice the size is decoded at 1/2, 1/4 or
        1/8: 1.1 to 1.8 times as fast, and pixels differ by 0.2 to 1.1 of 255 on average. False
        gives the pixels of decoding, cropping and resizing in Pillow, exactly.
      resize: "bicubic"; or "fast", for hosts that starve the accelerator: a JPEG may be decoded at
        down to 3/4 of the crop, other images are averaged down first, and the rest is bilinear.
        `python -m clip_jax.bench data` says what that gains on a machine and how pixels differ.

    Raises:
      UserError: a size or a range that is none, or no such way to resize.
    """
    self.size = _size(size)
    for name, (low, high), most in (("scale", scale, 1), ("ratio", ratio, math.inf)):
      if not 0 < low <= high <= most:
        raise UserError(f"{name} ({low}, {high}) is not a range: 0 < least <= greatest"
                        f"{' <= 1' if most == 1 else ''}.")
    if resize not in ("bicubic", "fast"):
      raise UserError(f'resize {resize!r} is not "bicubic" or "fast".')
    self.scale, self.ratio, self.squash = scale, ratio, squash
    self.shrink, self.resize = shrink, resize

  def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    box = self.box(picture.height, picture.width, rng)
    return _resized(picture, box, self.size, shrink=self.shrink, inside=True,
                    fast=self.resize == "fast")

  def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the part that is kept, in pixels."""
    # The root of height / width for boxes of the image's own shape.
    shape = math.sqrt(height / width) if self.squash else 1
    side = math.sqrt(height * width)
    shares = rng.uniform(*self.scale, size=10)
    low, high = np.log(self.ratio)
    ratios = np.exp(rng.uniform(low, high, size=10)) / shape**2
    down, right = rng.random(2)
    for share, ratio in zip(shares, ratios):
      h, w = round(side * math.sqrt(share / ratio)), round(side * math.sqrt(share * ratio))
      if 0 < h <= height and 0 < w <= width:
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        return left, top, left + w, top + h
    low, high = (ratio / shape**2 for ratio in self.ratio)
    h, w = min(height, round(width / low)), min(width, round(height * high))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Resize:
  """The whole image or its centre, resized; `__call__(image, rng=None)`, never random."""

  def __init__(self, size: int | tuple[int, int], mode: str = "squash", central: float = 1.0,
               shrink: bool = False):
    """Notes how to resize.

    Args:
      size: pixels a side, or (height, width).
      mode: what happens to an image of another aspect ratio.
        "squash": it is distorted; nothing is lost (big_vision's evaluators).
        "crop": the largest central box of the right aspect ratio is kept. With central=0.875 this
          is "resize the shorter side to size / 0.875, crop the centre", in one resampling (the
          study's evaluation).
        "pad": it is made to fit, with white around; nothing is lost.
      central: share of each side of that box (of the whole image for "squash" and "pad") that is
        kept, around the centre.
      shrink: as for `RandomResizedCrop`; off, because an evaluation has no need to hurry.

    Raises:
      UserError: no such mode, or a size or share that is none.
    """
    self.size = _size(size)
    if mode not in ("squash", "crop", "pad"):
      raise UserError(f'mode {mode!r} is not "squash", "crop" or "pad".')
    if not 0 < central <= 1:
      raise UserError(f"central {central} is not a share: 0 < central <= 1.")
    self.mode, self.central, self.shrink = mode, central, shrink

  def __call__(self, image: Any, rng: np.random.Generator | None = None) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    box = self.box(picture.height, picture.width)
    if self.mode != "pad":
      return _resized(picture, box, self.size, shrink=self.shrink)
    height, width = self.size
    left, top, right, bottom = box
    zoom = min(height / (bottom - top), width / (right - left))
    h, w = (max(1, round(zoom * side)) for side in (bottom - top, right - left))
    down, along = (height - h) // 2, (width - w) // 2
    padded = np.full((height, width, 3), 255, np.uint8)
    padded[down:down + h, along:along + w] = _resized(picture, box, (h, w), shrink=self.shrink)
    return padded

  def box(self, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the part that is kept, in pixels and fractions of them."""
    h, w = float(height), float(width)
    if self.mode == "crop":
      h = min(height, width * self.size[0] / self.size[1])
      w = min(width, height * self.size[1] / self.size[0])
    h, w = self.central * h, self.central * w
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _size(size):
  sides = (size, size) if isinstance(size, int) else size
  if not (isinstance(sides, (tuple, list)) and len(sides) == 2
          and all(isinstance(side, int) and side > 0 for side in sides)):
    raise UserError(f"size {size!r} is not a number of pixels, or (height, width), at least 1.")
  return tuple(sides)


def _resized(picture, box, size, *, shrink, inside=False, fast=False):
  """uint8 [H, W, 3]: the box, resized. `inside`: pixels beside the box have no influence."""
  left, top, right, bottom = box
  k = 1
  if shrink and picture.can_shrink:
    zoom = min((bottom - top) / size[0], (right - left) / size[1])
    k = max(k for k in (1, 2, 4, 8) if k <= max(zoom * (4 / 3 if fast else 1), 1))
  # Fractions, because rounding the box would shift the picture by up to half a pixel.
  left, top, right, bottom = (side / k for side in (left, top, right, bottom))
  pixels = picture.pixels(k)
  x, y = math.floor(left), math.floor(top)
  if not inside:  # The filter reaches up to this far beyond the box.
    down = math.ceil(2 * max(1, (bottom - top) / size[0])) + 1
    along = math.ceil(2 * max(1, (right - left) / size[1])) + 1
    x, y = max(0, x - along), max(0, y - down)
  else:
    down = along = 0
  cut = pixels[y:math.ceil(bottom) + down, x:math.ceil(right) + along]
  return np.asarray(Image.fromarray(cut).resize(
      size[::-1], Image.Resampling.BILINEAR if fast else Image.Resampling.BICUBIC,
      (left - x, top - y, right - x, bottom - y), reducing_gap=1.0 if fast else None))
