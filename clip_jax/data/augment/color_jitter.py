"""Random colour jitter on the host."""

from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance

from clip_jax.cli.values import Fraction, Probability, Range, checked


@checked
class ColorJitter:
  """Jitters brightness, contrast, saturation and hue in random order; `__call__(image, rng)`.

  Each strength is a maximum: a factor is drawn uniformly from [1 - strength, 1 + strength], and the
  hue shift from [-hue, hue], as a fraction of the colour circle.

  Source: Chen et al. 2020 (SimCLR), with the defaults of Mu et al. 2022 (SLIP). The operations are
  Pillow's, so pixels are rounded to integers after each one.
  """

  def __init__(
    self,
    brightness: Fraction = 0.4,
    contrast: Fraction = 0.4,
    saturation: Fraction = 0.4,
    hue: Annotated[float, Range(0, 0.5)] = 0.1,
    probability: Probability = 0.8,
    grayscale: Probability = 0.2,
  ):
    """Stores the strengths.

    Args:
      brightness, contrast, saturation: maximum change of each factor, in [0, 1].
      hue: maximum hue shift as a fraction of the colour circle, in [0, 0.5].
      probability: probability of applying the jitter at all.
      grayscale: probability of converting to grey afterwards.
    """
    self.strengths = np.array([brightness, contrast, saturation, hue])
    self.probability, self.grayscale = probability, grayscale

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3]."""
    # Draw every random number even if it goes unused, so that no decision shifts a later draw.
    apply, to_grey = rng.random(2)
    changes = self.strengths * rng.uniform(-1, 1, size=4)
    order = rng.permutation(4)
    picture = Image.fromarray(image)
    if apply < self.probability:
      for i in order:
        if self.strengths[i]:
          picture = _OPERATIONS[i](picture, changes[i])
    if to_grey < self.grayscale:
      picture = picture.convert("L").convert("RGB")
    return np.asarray(picture)


def rotate_hue(picture: Image.Image, shift: float) -> Image.Image:
  """Shifts the hue by `shift`, a fraction of the colour circle, in steps of 1/256."""
  hue, saturation, value = picture.convert("HSV").split()
  table = [(i + round(256 * shift)) % 256 for i in range(256)]
  return Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")


_OPERATIONS = (
  lambda picture, change: ImageEnhance.Brightness(picture).enhance(1 + change),
  lambda picture, change: ImageEnhance.Contrast(picture).enhance(1 + change),
  lambda picture, change: ImageEnhance.Color(picture).enhance(1 + change),
  rotate_hue,
)
