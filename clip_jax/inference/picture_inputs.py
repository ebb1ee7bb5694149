"""The forms in which `encode_image` takes pictures, as what preprocessing takes."""

from collections.abc import Iterable, Iterator
import os
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.decode import MAX_BYTES
from clip_jax.data.untrusted import NotAFile, read_regular
from clip_jax.errors import UserError

_TAKES = (
  "It takes paths, encoded bytes, open binary files, PIL images and uint8 arrays [H, W, 3], one of "
  "them or an iterable, or a uint8 array [n, H, W, 3]."
)


def pictures(images: Any) -> Iterator[Any]:
  """Yields encoded bytes, PIL images and uint8 arrays [H, W, 3], reading files as they are needed.

  Args:
    images: one picture or an iterable of them, each a path, encoded bytes, an open binary file, a
      PIL image, or uint8 [H, W, 3]; or uint8 [n, H, W, 3].

  Raises:
    UserError: something else is among them, or a file cannot be read.
  """
  if _is_one(images):
    images = [images]
  elif hasattr(images, "__array__"):
    images = np.asarray(images)
    if images.ndim != 4:
      raise UserError(f"encode_image cannot take {_described(images)}. {_TAKES}")
  elif not isinstance(images, Iterable):
    raise UserError(f"encode_image cannot take {_described(images)}. {_TAKES}")
  return map(_picture, images)


def _is_one(images):
  if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
    return True
  return hasattr(images, "read") or (
    hasattr(images, "__array__") and getattr(images, "ndim", 0) == 3
  )


def _picture(image):
  if isinstance(image, (str, os.PathLike)):
    try:
      return read_regular(os.path.expanduser(image), MAX_BYTES)
    except (OSError, NotAFile) as error:
      raise UserError(f"The picture {image} cannot be read: {error}") from error
  if hasattr(image, "read") and not isinstance(image, Image.Image):
    image = image.read()
  if isinstance(image, (bytes, bytearray, memoryview)):
    return bytes(image)
  if hasattr(image, "__array__") and not isinstance(image, Image.Image):
    image = np.asarray(image)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
      return image
  elif isinstance(image, Image.Image):
    return image
  raise UserError(f"encode_image cannot take {_described(image)}. {_TAKES}")


def _described(value):
  if isinstance(value, np.ndarray):
    return f"an array {value.dtype} [{', '.join(map(str, value.shape))}]"
  return f"a {type(value).__name__}, {value!r:.60}"
