"""SimCLR's augmentations after the crop: colour jitter, greyscale, blur and horizontal flip."""

import functools
import math
from typing import Annotated

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import Fraction, Probability, Range, checked
from clip_jax.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow.
Sigma = Annotated[float, Range(above=0, high=100)]  # The cost of a blur grows with it.
NO_BLUR = 1e-3  # Standard deviation in pixels; too small to affect neighbouring pixels.


@checked
class SimclrColors:
  """Applies SimCLR's colour augmentations to a batch, each with its own probability per image.

  In this order: with `probability`, a jitter of brightness, contrast, saturation and hue, in an
  order drawn for each image; with `grayscale`, conversion to grey; with `blur`, a Gaussian blur;
  with `flip`, a horizontal flip. The factors of the jitter are drawn uniformly from [1 - strength,
  1 + strength], and the hue shift from [-hue, hue], as a fraction of the colour circle.

  There are no branches: every image passes through every operation, with parameters that make it
  the identity if it was not drawn. Values are clipped to [0, 1] after every operation of the jitter
  but, unlike Pillow's, not rounded. The blur uses a true Gaussian, truncated at three standard
  deviations, and repeats the border pixels; Pillow approximates it by three box blurs.

  The defaults are those of SLIP and MoCo v3. SimCLR at strength 1 uses 0.8 for brightness, contrast
  and saturation, and 0.2 for hue.

  Source: Chen et al. 2020 (SimCLR), appendix A; Mu et al. 2022 (SLIP), sec. 4, as in its code.
  """

  def __init__(
    self,
    *,
    brightness: Fraction = 0.4,
    contrast: Fraction = 0.4,
    saturation: Fraction = 0.4,
    hue: Annotated[float, Range(0, 0.5)] = 0.1,
    probability: Probability = 0.8,
    grayscale: Probability = 0.2,
    blur: Probability = 0.5,
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    flip: Probability = 0.5,
  ):
    """Checks and stores the settings.

    Args:
      brightness, contrast, saturation: maximum change of each factor, in [0, 1].
      hue: maximum hue shift as a fraction of the colour circle, in [0, 0.5].
      probability: probability of applying the jitter.
      grayscale, blur, flip: probability of each operation.
      sigma: minimum and maximum standard deviation of the blur, in pixels.

    Raises:
      UserError: the minimum of sigma is above its maximum.
    """
    if sigma[0] > sigma[1]:
      raise UserError(f"sigma {tuple(sigma)} is not a range: expected minimum <= maximum.")
    self.strengths = (brightness, contrast, saturation, hue)
    self.probability, self.grayscale, self.blur, self.flip = probability, grayscale, blur, flip
    self.sigma = tuple(sigma)

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> float32 [B, H, W, 3] in [0, 1]; `key` is one key per image, [B]."""
    changes, order, uniform = jax.vmap(self._draw)(key)  # [B, 4], [B, 4], [B, 5]
    jitter, grey, blur, mirror = (
      uniform[:, i] < share
      for i, share in enumerate((self.probability, self.grayscale, self.blur, self.flip))
    )  # bool [B]
    if self.flip:  # Commutes with the rest, and uint8 is the cheapest to move.
      image = jnp.where(mirror[:, None, None, None], image[:, :, ::-1], image)
    x = image.astype(jnp.float32) / 255
    if self.probability and any(self.strengths):
      x = jitter_colors(x, jnp.where(jitter[:, None], changes, 0), order)
    if self.grayscale:
      x = jnp.where(grey[:, None, None, None], luma(x), x)
    if self.blur:
      low, high = self.sigma
      sigma = jnp.where(blur, low + (high - low) * uniform[:, 4], NO_BLUR)
      x = gaussian_blur(x, sigma, max_sigma=high)
    return x

  def _draw(self, key):
    """Draws the four jitter strengths, their order, and five uniform numbers in [0, 1)."""
    change, order, uniform = jax.random.split(key, 3)
    change = jax.random.uniform(change, (4,), minval=-1, maxval=1)
    return (
      np.asarray(self.strengths, np.float32) * change,
      jax.random.permutation(order, 4),
      jax.random.uniform(uniform, (5,)),
    )


def jitter_colors(x: jax.Array, changes: jax.Array, order: jax.Array) -> jax.Array:
  """Changes brightness, contrast, saturation and hue, in a separate order for each image.

  The first three share one formula, x + change (x - other), where `other` is black, the image's
  mean grey, or each pixel's grey. Selecting an image's operation at each of the four steps is
  therefore a matter of coefficients and needs no branch.

  Args:
    x: float32 [B, H, W, 3] in [0, 1].
    changes: [B, 4]; 0 is the identity. The last is a fraction of the colour circle.
    order: [B, 4], index of the operation at each step.
  """
  for step in range(4):
    chosen = jax.nn.one_hot(order[:, step], 4)  # [B, 4]
    change = chosen * changes
    of_mean, of_pixel = (chosen[:, i, None, None, None] for i in (1, 2))
    blend, hue = change[:, :3].sum(1)[:, None, None, None], change[:, 3, None, None]
    grey = luma(x)  # [B, H, W, 1]
    other = of_mean * grey.mean((1, 2), keepdims=True) + of_pixel * grey
    x = rotate_hue_yiq(jnp.clip(x + blend * (x - other), 0, 1), hue)
  return x


def luma(x: jax.Array) -> jax.Array:
  """Converts RGB to grey: [..., 3] -> [..., 1]."""
  # Not a matrix product, because some devices round its inputs to bfloat16, and not a reduction,
  # because compilers would give it a separate pass over memory.
  red, green, blue = (weight * x[..., i : i + 1] for i, weight in enumerate(LUMA))
  return red + green + blue


def rotate_hue_yiq(x: jax.Array, shift: jax.Array) -> jax.Array:
  """Shifts the hue by `shift`, a fraction of the colour circle, in HSV as the sources do.

  With hue h, value v and chroma c, a channel is v - c min(max(min(k, 4 - k), 0), 1), where k is
  h + 5, h + 3 and h + 1 modulo 6 for red, green and blue.

  Args:
    x: float32 [B, H, W, 3] in [0, 1].
    shift: broadcastable to [B, H, W].
  """
  red, green, blue = x[..., 0], x[..., 1], x[..., 2]
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  over = 1 / jnp.where(chroma > 0, chroma, 1)
  hue = jnp.where(
    value == red,
    (green - blue) * over,
    jnp.where(value == green, 2 + (blue - red) * over, 4 + (red - green) * over),
  )
  k = hue[..., None] + 6 * shift[..., None] + np.array([5, 3, 1], np.float32)
  k = k - 6 * jnp.floor(k / 6)  # Several times as fast as `jnp.mod`.
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def gaussian_blur(x: jax.Array, sigma: jax.Array, *, max_sigma: float) -> jax.Array:
  """Blurs each image with a Gaussian of its own standard deviation, repeating the border pixels.

  Sums shifted copies along one axis and then the other, because compilers handle convolutions with
  a separate kernel per image and channel very poorly.

  Args:
    x: float32 [B, H, W, 3].
    sigma: [B], in pixels.
    max_sigma: upper bound on sigma; the kernel radius is three times this.
  """
  radius = math.ceil(3 * max_sigma)
  offsets = np.arange(-radius, radius + 1)
  weights = jnp.exp(-0.5 * jnp.square(offsets / sigma[:, None]))  # [B, 2 radius + 1]
  weights = (weights / weights.sum(1, keepdims=True))[:, :, None, None, None]
  for axis in (1, 2):
    size = x.shape[axis]
    padded = jnp.pad(x, [(radius, radius) if a == axis else (0, 0) for a in range(4)], mode="edge")
    padded = lax.optimization_barrier(padded)  # Keep XLA from recomputing it per shift.
    x = functools.reduce(
      jnp.add,
      (
        weights[:, i] * lax.slice_in_dim(padded, i, i + size, axis=axis)
        for i in range(len(offsets))
      ),
    )
  return x
