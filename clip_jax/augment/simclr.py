"""SimCLR's augmentation of images that are cropped already: colours, grey, blur, mirror."""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey.
NO_BLUR = 1e-3  # A deviation in pixels of which nothing reaches the next pixel.


class SimclrColours:
  """Colours changed, dropped, blurred, mirrored, each with its probability; for a whole batch.

  In this order: with `probability` a jitter of brightness, contrast, saturation and hue, one after
  the other in an order drawn for each image; with `grey` no colours; with `blur` a Gaussian blur;
  with `flip` the mirror image. A factor of the jitter is uniform in [1 - strength, 1 + strength],
  the hue moves by a uniform part of its circle in [-hue, hue].

  There is no branch: every image goes through everything, and what it was not drawn for does
  nothing to it, by numbers of its own. Values are cut to [0, 1] after every operation but, unlike
  Pillow's, not rounded. The blur is the Gaussian itself to three deviations, with the border's
  pixels repeated outside, where Pillow approximates it by three boxes.

  Defaults are those of SLIP and MoCo v3. SimCLR at strength 1: brightness, contrast and saturation
  0.8, hue 0.2.

  Source: Chen et al. 2020 (SimCLR), appendix A; Mu et al. 2022 (SLIP), sec. 4, as in its code.
  """

  def __init__(self, *, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4,
               hue: float = 0.1, probability: float = 0.8, grey: float = 0.2, blur: float = 0.5,
               sigma: tuple[float, float] = (0.1, 2.0), flip: float = 0.5):
    """Notes the strengths.

    Args:
      brightness, contrast, saturation: greatest change of each factor, in [0, 1].
      hue: greatest turn of the colour circle, in [0, 0.5].
      probability: of changing the four at all.
      grey, blur, flip: probability of each.
      sigma: least and greatest deviation of the blur, in pixels.

    Raises:
      UserError: a number out of its range.
    """
    ranges = (("brightness", brightness, 1), ("contrast", contrast, 1),
              ("saturation", saturation, 1), ("hue", hue, 0.5), ("probability", probability, 1),
              ("grey", grey, 1), ("blur", blur, 1), ("flip", flip, 1))
    for name, value, most in ranges:
      if not 0 <= value <= most:
        raise UserError(f"{name} {value} is not between 0 and {most}.")
    if not 0 < sigma[0] <= sigma[1]:
      raise UserError(f"sigma {tuple(sigma)} is not a range: 0 < least <= greatest.")
    self.strengths = (brightness, contrast, saturation, hue)
    self.probability, self.grey, self.blur, self.flip = probability, grey, blur, flip
    self.sigma = tuple(sigma)

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> float32 [B, H, W, 3] in [0, 1]; `key` is one key per image, [B]."""
    changes, order, lots = jax.vmap(self._drawn)(key)                       # [B, 4], [B, 4], [B, 5]
    jitter, grey, blur, mirror = (lots[:, i] < share for i, share in enumerate(
        (self.probability, self.grey, self.blur, self.flip)))               # bool [B]
    if self.flip:  # Changes nothing in the rest, and bytes are the cheapest to move.
      image = jnp.where(mirror[:, None, None, None], image[:, :, ::-1], image)
    x = image.astype(jnp.float32) / 255
    if self.probability and any(self.strengths):
      x = jittered(x, jnp.where(jitter[:, None], changes, 0), order)
    if self.grey:
      x = jnp.where(grey[:, None, None, None], luma(x), x)
    if self.blur:
      low, high = self.sigma
      sigma = jnp.where(blur, low + (high - low) * lots[:, 4], NO_BLUR)
      x = blurred(x, sigma, greatest=high)
    return x

  def _drawn(self, key):
    """Changes of brightness, contrast, saturation and hue; their order; five lots in [0, 1)."""
    change, order, lots = jax.random.split(key, 3)
    change = jax.random.uniform(change, (4,), minval=-1, maxval=1)
    return (np.asarray(self.strengths, np.float32) * change,
            jax.random.permutation(order, 4), jax.random.uniform(lots, (5,)))


def jittered(x: jax.Array, changes: jax.Array, order: jax.Array) -> jax.Array:
  """Brightness, contrast, saturation and hue changed, in each image's own order.

  Three of them are one formula, x + change (x - other), where other is black, the mean grey of the
  image, or each pixel's grey; so an image's turn at each of four places is a choice of numbers.

  Args:
    x: float32 [B, H, W, 3] in [0, 1].
    changes: [B, 4]; 0 changes nothing. The last is a part of the colour circle.
    order: [B, 4], which of the four comes at each place.
  """
  for place in range(4):
    turn = jax.nn.one_hot(order[:, place], 4)                               # [B, 4]
    change = turn * changes
    of_mean, of_pixel = (turn[:, i, None, None, None] for i in (1, 2))
    blend, hue = change[:, :3].sum(1)[:, None, None, None], change[:, 3, None, None]
    grey = luma(x)                                                          # [B, H, W, 1]
    other = of_mean * grey.mean((1, 2), keepdims=True) + of_pixel * grey
    x = turned(jnp.clip(x + blend * (x - other), 0, 1), hue)
  return x


def luma(x: jax.Array) -> jax.Array:
  """Colours -> grey: [..., 3] -> [..., 1]."""
  # Neither a product of matrices, which some devices round to 8 bits, nor a reduction, which
  # compilers would give a pass over memory of its own.
  red, green, blue = (weight * x[..., i:i + 1] for i, weight in enumerate(LUMA))
  return red + green + blue


def turned(x: jax.Array, turn: jax.Array) -> jax.Array:
  """The image with its hue moved by `turn`, parts of the circle; through HSV, as the sources do.

  A channel of hue h, value v and chroma c is v - c min(max(min(k, 4 - k), 0), 1), where k = h + 5,
  h + 3 and h + 1 modulo 6 for red, green and blue.

  Args:
    x: float32 [B, H, W, 3] in [0, 1].
    turn: what broadcasts with [B, H, W].
  """
  red, green, blue = x[..., 0], x[..., 1], x[..., 2]
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  over = 1 / jnp.where(chroma > 0, chroma, 1)
  hue = jnp.where(value == red, (green - blue) * over,
                  jnp.where(value == green, 2 + (blue - red) * over, 4 + (red - green) * over))
  k = hue[..., None] + 6 * turn[..., None] + np.array([5, 3, 1], np.float32)
  k = k - 6 * jnp.floor(k / 6)  # `jnp.mod` is several times as slow.
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def blurred(x: jax.Array, sigma: jax.Array, *, greatest: float) -> jax.Array:
  """Each image convolved with a Gaussian of its own deviation, borders repeated outside.

  As sums of shifted images, along one axis and then the other: a convolution with another kernel
  for each image and channel is what compilers are worst at.

  Args:
    x: float32 [B, H, W, 3].
    sigma: [B], in pixels.
    greatest: no sigma is above it; kernels reach three times as far.
  """
  reach = math.ceil(3 * greatest)
  offsets = np.arange(-reach, reach + 1)
  weights = jnp.exp(-0.5 * jnp.square(offsets / sigma[:, None]))            # [B, 2 reach + 1]
  weights = (weights / weights.sum(1, keepdims=True))[:, :, None, None, None]
  for axis in (1, 2):
    size = x.shape[axis]
    padded = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
    padded = lax.optimization_barrier(padded)  # Or each shift is made from the beginning again.
    x = functools.reduce(jnp.add, (weights[:, i] * lax.slice_in_dim(padded, i, i + size, axis=axis)
                                   for i in range(len(offsets))))
  return x
