"""Crops and resizes images to a fixed size: random crops for training, fixed ones for evaluation.

The crop box is resized directly with Pillow's antialiased bicubic filter. `RandomResizedCrop` also
has a faster, less exact mode for hosts that cannot keep up.
"""

import copy
import math
from typing import Any, Literal

import numpy as np
from PIL import Image

from clip_jax.cli.values import ImageSize, PositiveFloat, PositiveFraction, checked
from clip_jax.data.decode import Picture
from clip_jax.data.resize_then_crop import INTERPOLATIONS
from clip_jax.errors import UserError


@checked
class RandomResizedCrop:
  """Crops a random box and resizes it; `__call__(image, rng)`.

  The box covers a random fraction of the area, has a random aspect ratio (log-uniform), and is
  placed uniformly inside the image. If none of ten draws fits, the largest central box with a
  permitted aspect ratio is used.

  Source: Szegedy et al. 2015, as in torchvision's RandomResizedCrop.
  """

  def __init__(
    self,
    size: ImageSize,
    scale: tuple[PositiveFraction, PositiveFraction] = (0.5, 1.0),
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3),
    resize_mode: Literal["keep_aspect", "squash"] = "keep_aspect",
    jpeg_draft: bool = True,
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest", "fast"] = "bicubic",
  ):
    """Checks and stores the settings.

    Args:
      size: output size in pixels: one int for a square, or (height, width).
      scale: minimum and maximum area of the box, as a fraction of the image. SLIP uses (0.5, 1)
        for the image paired with the text and (0.08, 1) for the other views.
      ratio: minimum and maximum aspect ratio, width / height, of the box.
      resize_mode: "keep_aspect", or "squash" to draw the box in the image squashed to a square:
        `ratio` then refers to the squashed image, and wide images are distorted as much as
        `Resize(resize_mode="squash")` distorts them in evaluation. This matters when many images
        are far from square.
      jpeg_draft: whether to decode a JPEG at 1/2, 1/4 or 1/8 when the box is at least twice the
        output size. This is 1.1 to 1.8 times as fast and changes pixels by 0.2 to 1.1 of 255 on
        average. False gives exactly the pixels of decoding, cropping and resizing in Pillow.
      interpolation: Pillow's filter, antialiased; or "fast" for hosts that cannot feed the
        accelerator. "fast" may
        decode a JPEG at down to 3/4 of the output size, box-averages other images first, and
        finishes with a bilinear filter. `python -m clip_jax.bench data` measures the speedup on
        this machine and the difference in pixels.

    Raises:
      UserError: the minimum of a range is above its maximum.
    """
    self.size = _size(size)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
      if low > high:
        raise UserError(f"{name} ({low}, {high}) is not a range: expected minimum <= maximum.")
    self.scale, self.ratio, self.resize_mode = scale, ratio, resize_mode
    self.jpeg_draft, self.interpolation = jpeg_draft, interpolation

  def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    box = self.box(picture.height, picture.width, rng)
    return _resized(
      picture,
      box,
      self.size,
      jpeg_draft=self.jpeg_draft,
      inside=True,
      interpolation=self.interpolation,
    )

  def with_scale(self, scale: tuple[float, float]) -> "RandomResizedCrop":
    """Returns a copy with another range of areas."""
    other = copy.copy(self)
    other.scale = scale
    return other

  def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws the crop box (left, top, right, bottom), in pixels."""
    # With "squash", ratios refer to the squashed image; dividing by shape**2 = height / width
    # converts them to ratios in pixels.
    shape = math.sqrt(height / width) if self.resize_mode == "squash" else 1
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


@checked
class Resize:
  """Resizes the whole image or its centre; `__call__(image, rng=None)`, deterministic."""

  def __init__(
    self,
    size: ImageSize,
    resize_mode: Literal["squash", "crop", "pad"] = "squash",
    center_crop: PositiveFraction = 1.0,
    jpeg_draft: bool = False,
  ):
    """Checks and stores the settings.

    Args:
      size: output size in pixels: one int for a square, or (height, width).
      resize_mode: how to handle an image with a different aspect ratio.
        "squash": stretch it to the output size, as big_vision's evaluators do.
        "crop": keep the largest central box with the output's aspect ratio. With
          center_crop=0.875 this is "resize the shorter side to size / 0.875, then crop the
          centre", in a single resampling (the evaluation of the study).
        "pad": fit it inside the output and fill the border with white.
      center_crop: fraction of each side of that box (for "squash" and "pad", of the whole image) to
        keep, around the centre.
      jpeg_draft: as for `RandomResizedCrop`; off by default, because exact pixels matter more than
        speed in evaluation.
    """
    self.size = _size(size)
    self.resize_mode, self.center_crop = resize_mode, center_crop
    self.jpeg_draft = jpeg_draft

  def __call__(self, image: Any, rng: np.random.Generator | None = None) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    box = self.box(picture.height, picture.width)
    if self.resize_mode != "pad":
      return _resized(picture, box, self.size, jpeg_draft=self.jpeg_draft)
    height, width = self.size
    left, top, right, bottom = box
    zoom = min(height / (bottom - top), width / (right - left))
    h, w = (max(1, round(zoom * side)) for side in (bottom - top, right - left))
    down, along = (height - h) // 2, (width - w) // 2
    padded = np.full((height, width, 3), 255, np.uint8)
    padded[down : down + h, along : along + w] = _resized(
      picture, box, (h, w), jpeg_draft=self.jpeg_draft
    )
    return padded

  def box(self, height: int, width: int) -> tuple[float, float, float, float]:
    """Returns the box to keep, (left, top, right, bottom), in fractional pixels."""
    h, w = float(height), float(width)
    if self.resize_mode == "crop":
      h = min(height, width * self.size[0] / self.size[1])
      w = min(width, height * self.size[1] / self.size[0])
    h, w = self.center_crop * h, self.center_crop * w
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _size(size):
  return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _resized(picture, box, size, *, jpeg_draft, inside=False, interpolation="bicubic"):
  """Resizes the box to uint8 [H, W, 3]; with `inside`, ignores all pixels outside the box."""
  left, top, right, bottom = box
  k, fast = 1, interpolation == "fast"
  if jpeg_draft and picture.can_shrink:
    zoom = min((bottom - top) / size[0], (right - left) / size[1])
    k = max(k for k in (1, 2, 4, 8) if k <= max(zoom * (4 / 3 if fast else 1), 1))
  # Keep the box fractional: rounding would shift the image by up to half a pixel.
  left, top, right, bottom = (side / k for side in (left, top, right, bottom))
  pixels = picture.pixels(k)
  x, y = math.floor(left), math.floor(top)
  if not inside:  # Include the pixels outside the box that the filter reads.
    down = math.ceil(2 * max(1, (bottom - top) / size[0])) + 1
    along = math.ceil(2 * max(1, (right - left) / size[1])) + 1
    x, y = max(0, x - along), max(0, y - down)
  else:
    down = along = 0
  cut = pixels[y : math.ceil(bottom) + down, x : math.ceil(right) + along]
  return np.asarray(
    _image(cut).resize(
      size[::-1],
      INTERPOLATIONS["bilinear" if fast else interpolation],
      (left - x, top - y, right - x, bottom - y),
      reducing_gap=1.0 if fast else None,
    )
  )


def _image(cut):
  """Makes a Pillow image of a part of an array without a copy of it in between."""
  height, width = cut.shape[:2]
  whole = cut.base
  if not (isinstance(whole, np.ndarray) and whole.flags.c_contiguous and cut.strides[1:] == (3, 1)):
    return Image.fromarray(cut)
  start = cut.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
  content: Any = memoryview(whole).cast("B")[start:]  # type: ignore[arg-type]
  return Image.frombuffer("RGB", (width, height), content, "raw", "RGB", cut.strides[0], 1)
