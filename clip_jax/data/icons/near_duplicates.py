"""Finds drawings that are the same up to size, padding and small differences.

`clip_jax.data.image_hash` is for pictures of any kind, and does not recognise one with another
border. Sets of icons differ in just that, and many icons differ in a detail that a short hash does
not see, such as the direction of an arrow.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import sparse

from clip_jax.data.icons.icon_drawing import paint

SIDE = 16  # Of the thumbnails that are compared.
_COLOURS = 4  # Colours are compared on a coarser grid.
LENGTH = SIDE**2 + 3 * _COLOURS**2 + 1
_VISIBLE = 32
# Thresholds on absolute differences, of 255: mean and maximum of the darkness, mean of the colours,
# and shape. The maximum separates what differs in a detail, such as arrows in circles.
_NEAR, _NEAR_ANYWHERE, _NEAR_COLOUR, _NEAR_SHAPE = 8.0, 72.0, 12.0, 20.0
_TABLES, _BITS, _NEIGHBOURS, _CHUNK = 12, 28, 6, 2**15


def thumbnail(drawing: np.ndarray) -> np.ndarray:
  """Reduces a drawing to the numbers that are compared.

  Args:
    drawing: from `decode_drawing`, uint8 [S, S] or [S, S, 4].

  Returns:
    uint8 [LENGTH]: darkness of the ink's bounding box on a 16 x 16 grid, colours on a 4 x 4 grid
    (0 without colours), and the ratio of the sides of the box.
  """
  painted = paint(drawing) if drawing.ndim == 3 else None
  dark = 255 - (painted.min(axis=2) if painted is not None else drawing)
  if painted is not None:
    dark = np.maximum(dark, drawing[..., 3] // 2)  # So that white ink is visible.
  left, right = _extent(dark.max(axis=0))
  top, bottom = _extent(dark.max(axis=1))
  box = (left, top, right, bottom)
  shrink = lambda pixels, side: np.asarray(
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box)
  ).ravel()
  colours = np.zeros(3 * _COLOURS**2, np.uint8)
  if painted is not None:
    colours = shrink(painted, _COLOURS)
  shape = 128 + 127 * np.tanh(np.log((right - left) / (bottom - top)))
  return np.concatenate([shrink(dark, SIDE), colours, [shape]]).astype(np.uint8)


def _extent(darkest):
  """Returns where the ink begins and ends along an axis, in fractions of a pixel.

  A pixel at the edge that is half covered is half dark.
  """
  visible = np.flatnonzero(darkest >= _VISIBLE)
  if not len(visible):
    return 0.0, float(len(darkest))
  first, last = visible[0], visible[-1]
  if first == last:
    return float(first), float(first + 1)
  return float(first + 1 - darkest[first] / 255), float(last + darkest[last] / 255)


def near_pairs(thumbnails: np.ndarray, seed: int = 0) -> np.ndarray:
  """Finds pairs of thumbnails that nearly agree.

  Thumbnails are sorted by some of their bits, several times with other bits, and compared with
  their neighbours (locality-sensitive hashing), so that the time grows as n log n. Of the pairs
  that differ in 4% of the bits, about 99% are found.

  Args:
    thumbnails: uint8 [n, LENGTH].
    seed: seed of the choice of bits.

  Returns:
    int64 [m, 2], each with the smaller index first.
  """
  n, rng = len(thumbnails), np.random.default_rng(seed)
  bits = thumbnails[:, : SIDE**2] >= 128
  share = bits.mean(axis=0)
  telling = np.argsort(-share * (1 - share), kind="stable")[: SIDE**2 // 2]
  order_of_all = np.unique(thumbnails, axis=0, return_inverse=True)[1].ravel()
  found = []
  for _ in range(_TABLES):
    chosen = rng.choice(telling, min(_BITS, len(telling)), replace=False)
    key = bits[:, chosen] @ (1 << np.arange(len(chosen), dtype=np.int64))
    order = np.lexsort((order_of_all, key))
    for step in range(1, min(_NEIGHBOURS, n - 1) + 1):
      a, b = order[:-step], order[step:]
      same = key[a] == key[b]
      a, b = a[same], b[same]
      for start in range(0, len(a), _CHUNK):
        i, j = a[start : start + _CHUNK], b[start : start + _CHUNK]
        near = _are_near(thumbnails[i], thumbnails[j])
        found.append(np.stack([i[near], j[near]], axis=1))
  pairs = np.concatenate(found) if found else np.empty((0, 2), np.int64)
  return np.unique(np.sort(pairs, axis=1), axis=0)


def _are_near(a, b):
  difference = np.abs(a.astype(np.int16) - b)
  dark, colours = difference[:, : SIDE**2], difference[:, SIDE**2 : -1]
  return (
    (dark.mean(axis=1) <= _NEAR)
    & (dark.max(axis=1) <= _NEAR_ANYWHERE)
    & (colours.mean(axis=1) <= _NEAR_COLOUR)
    & (difference[:, -1] <= _NEAR_SHAPE)
  )


def connected(n: int, pairs: np.ndarray, *keys: Sequence) -> np.ndarray:
  """Numbers groups of items that are connected by pairs, or by equal keys.

  Args:
    n: number of items.
    pairs: int [m, 2].
    keys: further values, n each; items with an equal one are connected. None connects nothing.

  Returns:
    Group of each item, int64 [n], numbered in the order of their first items.
  """
  edges = [np.asarray(pairs, np.int64).reshape(-1, 2)]
  for values in keys:
    first: dict = {}
    edges.append(
      np.array(
        [(first.setdefault(v, i), i) for i, v in enumerate(values) if v is not None], np.int64
      ).reshape(-1, 2)
    )
  rows, columns = np.concatenate(edges).T
  graph = sparse.coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
  _, labels = sparse.csgraph.connected_components(graph, directed=False)
  _, first_of, inverse = np.unique(labels, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first_of))[inverse]
