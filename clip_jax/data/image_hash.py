"""A perceptual hash of images: near-duplicates have hashes that differ in few bits.

The image is averaged to 9 x 9 cells of brightness and 5 x 5 cells of each of the two colour
differences Cb and Cr. Each bit of the hash says whether a cell exceeds its neighbour on the left,
or the one above, by more than `MARGIN` of 255. The margin keeps noise in uniform areas from
deciding bits; drawings have many such areas. 128 bits are of brightness and 64 of colour.

Copies in another size, format or quality differ in few bits. Crops, mirror images and added borders
are not found. On 400 drawings of Open Clip Art, many of which resemble each other, at most 6 bits
differ for 99.5% of the copies in JPEG at quality 75, 84% of those with 0.7 times the size, 94% of
those with twice the size in JPEG at quality 40, and 96% of those with eight times the size. Among
1,500 drawings, 48 have another one within 4 bits, 61 within 6 and 90 within 8, most of them from
series such as playing cards.

Source: the difference hash (dHash) of Neal Krawetz, 2013, with a margin and colour.
"""

from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.decode import Picture

BYTES = 24
MARGIN = 4.0  # Of 255.
_SMALLEST = 80  # Pixels of the shorter side that the cells are averaged from, about 9 per cell.
_CELLS = (9, 5, 5)
# Rows: Y, Cb and Cr of ITU-R BT.601, as in JPEG, without the offset of 128.
_TO_YCC = np.array(
  [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
# Spreads neighbouring bits, which are correlated, over the hash: 77 and 192 have no common factor.
_ORDER = np.arange(8 * BYTES) * 77 % (8 * BYTES)


def image_hash(image: Any) -> np.ndarray:
  """Computes the hash of an image.

  Args:
    image: encoded bytes, a PIL image, or uint8 [H, W, 3].

  Returns:
    uint8 [24], 192 bits.

  Raises:
    UnreadableImage: damaged, or not an image.
  """
  picture = Picture(image)
  shrink = 1
  if picture.can_shrink:  # The decoder's own averaging is much faster.
    most = min(picture.height, picture.width) // _SMALLEST
    shrink = max(k for k in (1, 2, 4, 8) if k <= max(most, 1))
  pixels = Image.fromarray(picture.pixels(shrink))
  bits = [bit for cells, row in zip(_CELLS, _TO_YCC) for bit in _bits(pixels, cells, row)]
  return np.packbits(np.concatenate(bits)[_ORDER])


def _bits(pixels, cells, row):
  """Compares a channel's cells with their neighbours, bool [(cells - 1)^2] for either direction."""
  means = np.asarray(pixels.resize((cells, cells), Image.Resampling.BOX), np.float32) @ row
  across = np.diff(means, axis=1)[:-1]
  down = np.diff(means, axis=0)[:, :-1]
  return (across > MARGIN).ravel(), (down > MARGIN).ravel()
