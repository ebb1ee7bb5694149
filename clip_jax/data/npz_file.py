"""Reads .npz files that anyone may have written, within the memory that their size justifies."""

from collections.abc import Callable, Iterable
import math
import os
import zipfile

import numpy as np

from clip_jax.data.untrusted import open_regular

# Weights hardly compress; a file of zeros compresses a thousandfold.
_MOST_EXPANSION = 20
_FREE = 64 * 2**20  # Bytes that any file may unpack to.


class UnreadableNpz(ValueError):
  """It is damaged, is not an .npz file of plain arrays, or unpacks to far more than its size."""


def read_npz(
  path: str | os.PathLike, pick: Callable[[list[str]], Iterable[str]] = list
) -> dict[str, np.ndarray]:
  """Returns arrays of a file by name, read-only.

  Args:
    path: the file.
    pick: names in the file -> names of the arrays to read; all by default.

  Raises:
    UnreadableNpz: an array is missing, or see there.
    OSError: the file cannot be opened, or is a FIFO or a device.
  """
  with open_regular(path) as f:
    try:
      with zipfile.ZipFile(f) as file:
        there = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        infos = {name: there[name] for name in pick(list(there))}
        unpacked, size = sum(info.file_size for info in infos.values()), os.path.getsize(path)
        if unpacked > _MOST_EXPANSION * size + _FREE:
          raise UnreadableNpz(f"{size:,} bytes would unpack to {unpacked:,}")
        return {name: read_member(file, info) for name, info in infos.items()}
    except KeyError as error:
      raise UnreadableNpz(f"it has no array {error}") from error
    except UnreadableNpz:
      raise
    except Exception as error:  # The libraries raise many kinds of errors for damaged files.
      raise UnreadableNpz(f"{type(error).__name__}: {error}") from error


def read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """Returns one array, read-only.

  Raises:
    UnreadableNpz: its header does not match its size in the file, or it holds Python objects.
    Exception: many kinds, for damaged files.
  """
  with file.open(info) as f:
    version = np.lib.format.read_magic(f)
    if version not in ((1, 0), (2, 0)):
      raise UnreadableNpz(f"{info.filename} has version {version}")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
      read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(f)  # NumPy limits the header to 10,000 bytes.
    check_array(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    if size != info.file_size - f.tell():
      raise UnreadableNpz(f"{info.filename} is {dtype} {shape}, but has {info.file_size:,} bytes")
    data = f.read(size)
  if len(data) != size:
    raise UnreadableNpz(f"{info.filename} ends early")
  array = np.frombuffer(data, dtype) if size else np.empty(math.prod(shape), dtype)
  return array.reshape(shape, order="F" if fortran else "C")


def check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
  """Checks what the header of an .npy file declares.

  Raises:
    UnreadableNpz: a negative side, Python objects, or a dtype with several fields.
  """
  if any(side < 0 for side in shape) or dtype.hasobject or dtype.fields or dtype.subdtype:
    raise UnreadableNpz(f"{dtype} {shape} is not a plain array")
