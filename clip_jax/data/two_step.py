"""An image to pixels in two steps, resize and crop, as most published weights were evaluated."""

from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.decode import Picture
from clip_jax.errors import UserError

MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
                  "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


class TwoStep:
  """The whole image resized to whole pixels, then its centre; `__call__(image, rng=None)`.

  `Resize` resamples the box that is kept, once; this resamples the image and cuts afterwards, which
  moves pixels by up to half of one. It is what OpenAI's, open_clip's and Hugging Face's code does.
  """

  def __init__(self, size: int | tuple[int, int], mode: str = "shortest",
               interpolation: str = "bicubic", side: int | None = None):
    """Notes how.

    Args:
      size: pixels a side, or (height, width), of the result.
      mode: "shortest", the shorter side is made to fit and the centre is cut out; "longest", the
        longer side is, with black around; "squash", both are.
      interpolation: a name in `INTERPOLATIONS`, with Pillow's antialiasing.
      side: what the shorter side is resized to, if not to `size`.

    Raises:
      UserError: there is no such mode or interpolation.
    """
    for what, value, known in (("mode", mode, MODES),
                               ("interpolation", interpolation, INTERPOLATIONS)):
      if value not in known:
        raise UserError(f"There is no {what} {value!r}; there are {', '.join(known)}.")
    self.size = (size, size) if isinstance(size, int) else tuple(size)
    self.mode, self.interpolation, self.side = mode, interpolation, side

  def __call__(self, image: Any, rng: np.random.Generator | None = None) -> np.ndarray:
    """Encoded bytes, a PIL image, uint8 [H, W, 3] or a `Picture` -> uint8 [size, size, 3]."""
    picture = image if isinstance(image, Picture) else Picture(image)
    wanted = self._resized(picture.height, picture.width)
    pixels = Image.fromarray(picture.pixels()).resize(
        wanted[::-1], INTERPOLATIONS[self.interpolation])
    (height, width), (h, w) = wanted, self.size
    # Halves are rounded to even, as PyTorch's centre crop has it; outside the image is black.
    top, left = round((height - h) / 2), round((width - w) / 2)
    return np.asarray(pixels.crop((left, top, left + w, top + h)))

  def _resized(self, height, width):
    """(height, width) of the whole image after the first step."""
    if self.mode == "squash":
      return self.size
    if self.mode == "shortest" and (self.side or self.size[0] == self.size[1]):
      # The other side is rounded down.
      side = self.side or self.size[0]
      short = min(height, width)
      return side * height // short, side * width // short
    ratios = height / self.size[0], width / self.size[1]
    ratio = max(ratios) if self.mode == "longest" else min(ratios)
    return round(height / ratio), round(width / ratio)
