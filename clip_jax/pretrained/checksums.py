"""Checksums of the arrays in a checkpoint, which do not depend on how the arrays are sharded.

The checksum of an array is the sum, modulo 2**32, of a hash of each 32-bit word and its position. A
sum has no order, so that devices compute it from their shards without gathering the array, and a
checkpoint can be verified on another mesh than it was saved from. A change within one word always
changes the sum, any other change does with a probability of 1 - 2**-32.
"""

from collections.abc import Mapping
import concurrent.futures
import dataclasses
import json
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.parallel.tree_paths import leaves_by_name

FORMAT = 1
_CHUNK = 2**18  # Words that NumPy hashes at a time, few enough for the processor's cache.


class Entry(NamedTuple):
  """The checksum of one array, with its dtype and shape."""

  dtype: str
  shape: tuple[int, ...]
  checksum: int


@dataclasses.dataclass(frozen=True)
class Checksums:
  """What a checkpoint must contain.

  Attributes:
    step: number of steps made when it was saved.
    config: CRC-32 of the text of its config.
    arrays: an entry for each array, by the array's name in the tree.
  """

  step: int
  config: int
  arrays: dict[str, Entry]

  @classmethod
  def of(cls, step: int, config: str, tree: Any) -> "Checksums":
    """Computes the checksums of a tree of device arrays; all processes must take part."""
    arrays, sums = leaves_by_name(tree), leaves_by_name(jax.device_get(device_checksums(tree)))
    return cls(
      step,
      crc32(config),
      {n: Entry(str(x.dtype), tuple(x.shape), int(sums[n])) for n, x in arrays.items()},
    )

  def to_json(self) -> dict[str, Any]:
    """Converts to plain values, with a checksum of their own."""
    plain: dict[str, Any] = {
      "format": FORMAT,
      "step": self.step,
      "config": self.config,
      "arrays": {n: list(x) for n, x in self.arrays.items()},
    }
    return plain | {"checksum": crc32(json.dumps(plain, sort_keys=True))}

  @classmethod
  def from_json(cls, plain: Any) -> "Checksums":
    """Reads what `to_json` returns.

    Raises:
      ValueError: it is something else, or has changed.
    """
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
      raise ValueError("checksums in an unknown format")
    own = plain.pop("checksum", None)
    if own != crc32(json.dumps(plain, sort_keys=True)):
      raise ValueError("checksums that do not match their own checksum")
    try:
      arrays = {n: Entry(x[0], tuple(x[1]), x[2]) for n, x in plain["arrays"].items()}
      return cls(plain["step"], plain["config"], arrays)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
      raise ValueError("checksums in an unknown format") from error

  def differences(self, sums: Mapping[str, int]) -> list[str]:
    """Returns the names of the arrays whose checksum is not the recorded one."""
    return [n for n, x in sums.items() if n not in self.arrays or self.arrays[n].checksum != x]


def crc32(text: str) -> int:
  """Computes the CRC-32 of a text."""
  return zlib.crc32(text.encode())


@jax.jit
def device_checksums(tree: Any) -> Any:
  """Computes the checksum of each array, uint32 [], where the array is stored."""
  return jax.tree.map(_device_checksum, tree)


def _device_checksum(x):
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  size = x.dtype.itemsize
  words = jax.lax.bitcast_convert_type(x, f"uint{8 * min(size, 4)}").astype(jnp.uint32)
  position, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position += along * np.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_hash(words ^ _hash(position)), dtype=jnp.uint32)


def host_checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
  """Computes the checksum of each array with NumPy, equal to that of `device_checksums`."""
  with concurrent.futures.ThreadPoolExecutor() as pool:  # NumPy releases the interpreter's lock.
    return dict(zip(arrays, pool.map(_host_checksum, arrays.values())))


def _host_checksum(x):
  x = np.ascontiguousarray(x).reshape(-1)
  words = x.view(f"uint{8 * min(x.dtype.itemsize, 4)}")
  total = 0
  for start in range(0, len(words), _CHUNK):
    chunk = words[start : start + _CHUNK].astype(np.uint32)
    position = np.arange(start, start + len(chunk), dtype=np.uint64).astype(np.uint32)
    total += int(_hash(chunk ^ _hash(position)).sum(dtype=np.uint64))
  return total % 2**32


def _hash(h):
  """A bijection of 32-bit words in which each bit depends on all bits of the input.

  Source: Wellons, "Prospecting for hash functions", lowbias32.
  """
  h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
  h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
  return h ^ (h >> np.uint32(16))
