"""RandAugment: a few operations drawn from fourteen, all at one magnitude."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from clip_jax.errors import UserError

MAGNITUDES = 10  # The published scale is 0 to 10.


class RandAugment:
  """Some of the fourteen, one after the other, drawn with replacement; `__call__(image, rng)`.

  Strength grows with the magnitude for every operation, and signs are random. (In the published
  code Posterize and Solarize run backwards, and the four enhancements go from a tenth of the factor
  at magnitude 0 to 1.9 at 10, so that they do nothing in the middle.)

  Source: Cubuk et al. 2019, "RandAugment"; the ranges are those of AutoAugment (Cubuk et al. 2018).
  """

  def __init__(self, operations: int = 2, magnitude: float = 9,
               fill: tuple[int, int, int] = (128, 128, 128), resampling: str = "nearest"):
    """Notes how to augment.

    Args:
      operations: how many, one after the other. The paper's ImageNet setting is 2, magnitude 9.
      magnitude: 0 (nothing, but for AutoContrast and Equalize) to 10.
      fill: colour of what comes into the image from outside; the published grey, or (255, 255, 255)
        where drawings stand on white.
      resampling: "nearest" or "bilinear", for what rotates and shears; nearest is 3 times as fast.

    Raises:
      UserError: a number out of its range, or no such resampling.
    """
    if operations < 0:
      raise UserError(f"operations {operations} is not a number of them, at least 0.")
    if not 0 <= magnitude <= MAGNITUDES:
      raise UserError(f"magnitude {magnitude} is not between 0 and {MAGNITUDES}.")
    if resampling not in ("nearest", "bilinear"):
      raise UserError(f'resampling {resampling!r} is not "nearest" or "bilinear".')
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
          picture, self.strength, int(sign), fillcolor=self.fill, resample=self.resampling)
    return np.asarray(picture)


def _identity(picture, strength, sign, **outside):
  return picture


def _auto_contrast(picture, strength, sign, **outside):
  """Darkest value of each channel to 0, lightest to 255."""
  return ImageOps.autocontrast(picture)


def _equalize(picture, strength, sign, **outside):
  """Histogram of each channel made flat."""
  return ImageOps.equalize(picture)


def _rotate(picture, strength, sign, **outside):
  """Up to 30 degrees."""
  return picture.rotate(sign * 30 * strength, outside["resample"], fillcolor=outside["fillcolor"])


def _solarize(picture, strength, sign, **outside):
  """Values at or above 256 (none) down to 0 (all) are inverted."""
  return ImageOps.solarize(picture, 256 - round(256 * strength))


def _posterize(picture, strength, sign, **outside):
  """8 down to 4 bits are kept."""
  return ImageOps.posterize(picture, 8 - round(4 * strength))


def _enhance(kind):
  """Factors 1 to 0.1 or 1.9."""
  return lambda picture, strength, sign, **outside: kind(picture).enhance(1 + sign * 0.9 * strength)


def _shear_x(picture, strength, sign, **outside):
  """Rows moved by up to 0.3 of their height, about the top."""
  return _affine(picture, (1, sign * 0.3 * strength, 0, 0, 1, 0), outside)


def _shear_y(picture, strength, sign, **outside):
  """Columns moved by up to 0.3 of their distance from the left."""
  return _affine(picture, (1, 0, 0, sign * 0.3 * strength, 1, 0), outside)


def _translate_x(picture, strength, sign, **outside):
  """Up to 150 / 331 of the width (150 pixels of AutoAugment's 331)."""
  return _affine(picture, (1, 0, sign * 150 / 331 * strength * picture.width, 0, 1, 0), outside)


def _translate_y(picture, strength, sign, **outside):
  """Up to 150 / 331 of the height."""
  return _affine(picture, (1, 0, 0, 0, 1, sign * 150 / 331 * strength * picture.height), outside)


def _affine(picture, matrix, outside):
  """Pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""
  return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **outside)


# name: operation(picture, strength in [0, 1], sign, fillcolor=, resample=) -> picture, mode RGB.
OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "identity": _identity, "auto_contrast": _auto_contrast, "equalize": _equalize,
    "rotate": _rotate, "solarize": _solarize, "colour": _enhance(ImageEnhance.Color),
    "posterize": _posterize, "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness), "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x, "shear_y": _shear_y, "translate_x": _translate_x,
    "translate_y": _translate_y}
