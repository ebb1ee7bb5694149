"""Resizes, then crops: the preprocessing that most published weights were evaluated with."""

from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image

from clip_jax.cli.values import ImageSize, OneOf, Pixels, checked
from clip_jax.data.decode import Picture

INTERPOLATIONS = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


@checked
class ResizeThenCrop:
  """Resizes the whole image to a whole number of pixels, then crops; `__call__(image, rng=None)`.

  `Resize` resamples only the box that is kept. This class resamples the whole image and crops the
  result, which shifts the content by up to half a pixel. It matches the code of OpenAI, open_clip
  and Hugging Face.
  """

  def __init__(
    self,
    size: ImageSize,
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest",
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = "bicubic",
    side: Pixels | None = None,
  ):
    """Checks and stores the settings.

    Args:
      size: output size in pixels: one int for a square, or (height, width).
      resize_mode: "shortest" fits the shorter side and crops the centre; "longest" fits the longer
        side and pads with black; "squash" stretches both sides.
      interpolation: a name in `INTERPOLATIONS`, with Pillow's antialiasing.
      side: length to which the shorter side is resized, if different from `size`.
    """
    self.size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    self.resize_mode, self.interpolation, self.side = resize_mode, interpolation, side

  def __call__(self, image: Any, rng: np.random.Generator | None = None) -> np.ndarray:
    """Encoded bytes, a PIL image, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    wanted = self._resized(picture.height, picture.width)
    pixels = Image.fromarray(picture.pixels()).resize(
      wanted[::-1], INTERPOLATIONS[self.interpolation]
    )
    (height, width), (h, w) = wanted, self.size
    # `round` rounds halves to even, as torchvision's CenterCrop does. Pillow pads with black.
    top, left = round((height - h) / 2), round((width - w) / 2)
    return np.asarray(pixels.crop((left, top, left + w, top + h)))

  def _resized(self, height, width):
    """Returns the (height, width) of the whole image after resizing."""
    if self.resize_mode == "squash":
      return self.size
    if self.resize_mode == "shortest" and (self.side or self.size[0] == self.size[1]):
      # Round the longer side down, as torchvision's Resize does.
      side = self.side or self.size[0]
      short = min(height, width)
      return side * height // short, side * width // short
    ratios = height / self.size[0], width / self.size[1]
    ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
    return round(height / ratio), round(width / ratio)
