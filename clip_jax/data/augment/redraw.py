"""Redraws small drawings in other styles: coarser pixels, other lines, filled, inverted."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from clip_jax.cli.values import Probability, checked

_SIDES = (2, 3)  # Of the blocks of `pixelate`, in pixels.
_DARK = 140  # Values above are white in one-bit drawings.


@checked
class Redraw:
  """Changes the style of a drawing but not what it shows; `__call__(image, rng)`.

  Sets of icons differ in the width of their lines, in whether shapes are filled, and in whether
  they are drawn on a grid of pixels. Each effect is applied, or not, by itself.
  """

  def __init__(
    self,
    pixelate: Probability = 0.2,
    one_bit: Probability = 0.1,
    thicken: Probability = 0.15,
    thin: Probability = 0.1,
    fill: Probability = 0.1,
    outline: Probability = 0.1,
    grayscale: Probability = 0.2,
    invert: Probability = 0.1,
  ):
    """Stores the probabilities.

    Args:
      pixelate: average blocks of 2 x 2 or 3 x 3 pixels.
      one_bit: make each channel of a pixel 0 or 255.
      thicken: replace each pixel by the darkest of the 3 x 3 around it.
      thin: replace each pixel by the lightest of the 3 x 3 around it.
      fill: make areas that dark lines enclose dark too.
      outline: keep only the edges of dark areas.
      grayscale: convert to grey.
      invert: exchange dark and light.
    """
    self._effects: tuple[tuple[float, Callable], ...] = (
      (pixelate, _pixelate),
      (one_bit, lambda picture, _: picture.point(lambda value: 255 * (value > _DARK))),
      (thicken, lambda picture, _: picture.filter(ImageFilter.MinFilter(3))),
      (thin, lambda picture, _: picture.filter(ImageFilter.MaxFilter(3))),
      (fill, _fill),
      (outline, _outline),
      (grayscale, lambda picture, _: picture.convert("L").convert("RGB")),
      (invert, lambda picture, _: picture.point(lambda value: 255 - value)),
    )

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3]."""
    # Draw every random number even if it goes unused, so that no decision shifts a later draw.
    draws = rng.random(len(self._effects) + 1)
    chosen = [effect for (share, effect), u in zip(self._effects, draws) if u < share]
    if not chosen:
      return image
    picture = Image.fromarray(image)
    for effect in chosen:
      picture = effect(picture, draws[-1])
    return np.asarray(picture)


def _pixelate(picture, u):
  side = _SIDES[int(u * len(_SIDES))]
  small = picture.reduce(side)
  return small.resize(picture.size, Image.Resampling.NEAREST)


def _fill(picture, _):
  dark = np.asarray(picture.convert("L")) <= _DARK
  enclosed = ndimage.binary_fill_holes(dark) & ~dark
  return Image.fromarray(np.where(enclosed[..., None], np.uint8(0), np.asarray(picture)))


def _outline(picture, _):
  grey = picture.convert("L")
  inside = np.asarray(grey.filter(ImageFilter.MaxFilter(3)), np.int16)  # Dark far from any edge.
  return Image.fromarray((255 - (inside - np.asarray(grey))).astype(np.uint8)).convert("RGB")
