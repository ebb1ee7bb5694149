"""Packs records into bytes with MessagePack, and pixels as they are."""

from collections.abc import Mapping
import functools
from typing import Any

import msgpack
import numpy as np

from clip_jax.errors import UserError

_PIXELS = 1  # The extension type of MessagePack for pixels.
_HEADER = 12  # Bytes of the shape: height, width and channels.


def pack(record: Mapping[str, Any]) -> bytes:
  """Packs a dict of str, bytes, numbers, pixels, and lists and dicts of these.

  Pixels are uint8 [H, W, 3]. If the three channels are equal, only one is stored.
  """
  return msgpack.packb(record, default=_pixels)


def unpack(content: bytes) -> dict[str, Any]:
  """Returns a record; the inverse of `pack`.

  Raises:
    UserError: its pixels are damaged.
  """
  return msgpack.unpackb(content, ext_hook=_read_pixels)


def _pixels(value):
  if not (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3):
    raise TypeError(f"a record cannot hold a {type(value).__name__}")
  grey = value.shape[2] == 3 and (value == value[..., :1]).all()
  stored = np.ascontiguousarray(value[..., :1] if grey else value)
  return msgpack.ExtType(_PIXELS, np.array(stored.shape, "<u4").tobytes() + stored.tobytes())


def _read_pixels(code, content):
  if code != _PIXELS:
    raise UserError(f"A record has a field of the unknown type {code}. A newer version wrote it.")
  if len(content) < _HEADER:
    raise UserError("The pixels of a record are damaged: they have no shape.")
  shape = _shape(content[:_HEADER])
  pixels = np.frombuffer(content, np.uint8, offset=_HEADER)
  if pixels.size != shape[0] * shape[1] * shape[2]:
    raise UserError("The pixels of a record are damaged: their number is not that of the shape.")
  pixels = pixels.reshape(shape)
  return np.repeat(pixels, 3, axis=2) if shape[2] == 1 else pixels


@functools.lru_cache(64)
def _shape(header):
  return tuple(int(n) for n in np.frombuffer(header, "<u4"))
