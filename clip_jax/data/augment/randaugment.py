"""RandAugment: a few random operations out of fourteen, all at one magnitude."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from clip_jax.cli.values import Range, checked

MAGNITUDES = 10  # The published scale is 0 to 10.
Byte = Annotated[int, Range(0, 255)]


@checked
class RandAugment:
  """Applies operations drawn with replacement, one after the other; `__call__(image, rng)`.

  Every operation gets stronger with the magnitude, and signs are random. (In the published code,
  Posterize and Solarize get weaker, and the four enhancements go from a factor of 0.1 at magnitude
  0 to 1.9 at magnitude 10, so they do nothing in the middle.)

  Source: Cubuk et al. 2019, "RandAugment"; the ranges are those of AutoAugment (Cubuk et al. 2018).
  """

  def __init__(
    self,
    operations: Annotated[int, Range(0, 100)] = 2,
    magnitude: Annotated[float, Range(0, MAGNITUDES)] = 9,
    fill: tuple[Byte, Byte, Byte] = (128, 128, 128),
    resampling: Literal["nearest", "bilinear"] = "nearest",
  ):
    """Stores the settings.

    Args:
      operations: number of operations per image. The paper uses 2, at magnitude 9, for ImageNet.
      magnitude: 0 to 10. At 0 every operation except AutoContrast and Equalize is the identity.
      fill: colour of the pixels that rotation, shear and translation expose. The default is the
        published grey; use (255, 255, 255) for drawings on white.
      resampling: "nearest" or "bilinear", used by the geometric operations; nearest is 3 times as
        fast.
    """
    self.operations, self.strength = operations, magnitude / MAGNITUDES
    self.fill, self.resampling = tuple(fill), Image.Resampling[resampling.upper()]

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3]."""
    chosen = rng.integers(len(OPERATIONS), size=self.operations)
    signs = rng.integers(2, size=self.operations) * 2 - 1
    picture = Image.fromarray(image)
    names = list(OPERATIONS)
    for i, sign in zip(chosen, signs):
      picture = OPERATIONS[names[i]](
        picture, self.strength, int(sign), fillcolor=self.fill, resample=self.resampling
      )
    return np.asarray(picture)


def _identity(picture, strength, sign, **outside):
  return picture


def _auto_contrast(picture, strength, sign, **outside):
  """Stretches each channel to the full range, 0 to 255."""
  return ImageOps.autocontrast(picture)


def _equalize(picture, strength, sign, **outside):
  """Flattens the histogram of each channel."""
  return ImageOps.equalize(picture)


def _rotate(picture, strength, sign, **outside):
  """Rotates by up to 30 degrees."""
  return picture.rotate(sign * 30 * strength, outside["resample"], fillcolor=outside["fillcolor"])


def _solarize(picture, strength, sign, **outside):
  """Inverts values at or above a threshold that falls from 256 (none) to 0 (all)."""
  return ImageOps.solarize(picture, 256 - round(256 * strength))


def _posterize(picture, strength, sign, **outside):
  """Keeps 8 down to 4 bits per channel."""
  return ImageOps.posterize(picture, 8 - round(4 * strength))


def _enhance(kind):
  """Returns an operation that enhances by a factor between 1 and 0.1 or 1.9."""
  return lambda picture, strength, sign, **outside: kind(picture).enhance(1 + sign * 0.9 * strength)


def _shear_x(picture, strength, sign, **outside):
  """Shifts each row by up to 0.3 of its distance from the top."""
  return _affine(picture, (1, sign * 0.3 * strength, 0, 0, 1, 0), outside)


def _shear_y(picture, strength, sign, **outside):
  """Shifts each column by up to 0.3 of its distance from the left edge."""
  return _affine(picture, (1, 0, 0, sign * 0.3 * strength, 1, 0), outside)


def _translate_x(picture, strength, sign, **outside):
  """Shifts by up to 150 / 331 of the width, AutoAugment's 150 pixels at size 331."""
  return _affine(picture, (1, 0, sign * 150 / 331 * strength * picture.width, 0, 1, 0), outside)


def _translate_y(picture, strength, sign, **outside):
  """Shifts by up to 150 / 331 of the height."""
  return _affine(picture, (1, 0, 0, 0, 1, sign * 150 / 331 * strength * picture.height), outside)


def _affine(picture, matrix, outside):
  """Maps output pixel (x, y) to input pixel (a x + b y + c, d x + e y + f)."""
  return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **outside)


# name: operation(picture, strength in [0, 1], sign, fillcolor=, resample=) -> picture, mode RGB.
OPERATIONS: dict[str, Callable[..., Image.Image]] = {
  "identity": _identity,
  "auto_contrast": _auto_contrast,
  "equalize": _equalize,
  "rotate": _rotate,
  "solarize": _solarize,
  "colour": _enhance(ImageEnhance.Color),
  "posterize": _posterize,
  "contrast": _enhance(ImageEnhance.Contrast),
  "brightness": _enhance(ImageEnhance.Brightness),
  "sharpness": _enhance(ImageEnhance.Sharpness),
  "shear_x": _shear_x,
  "shear_y": _shear_y,
  "translate_x": _translate_x,
  "translate_y": _translate_y,
}
