"""Reads .safetensors files without copying the arrays, and writes them."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from clip_jax.errors import UserError
from clip_jax.files import atomic_path

DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}


def read(path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name, as read-only views of a memory map.

  The library checks the header. Its own NumPy loader would copy every array into memory.

  Raises:
    UserError: the file is truncated, is not a .safetensors file, or has an unsupported dtype.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      names = file.offset_keys()
      entries = [file.get_slice(name) for name in names]
      shapes = [entry.get_shape() for entry in entries]
      kinds = [entry.get_dtype() for entry in entries]
  except safetensors.SafetensorError as error:
    raise UserError(
      f"{path} is truncated or not a .safetensors file ({path.stat().st_size:,} bytes): "
      f"{str(error).removeprefix('Error while deserializing header: ')}. Download it again; a file "
      "of about 130 bytes is a Git LFS pointer."
    ) from error
  for name, kind in zip(names, kinds):
    if kind not in DTYPES:
      raise UserError(f"{path}: {name} has dtype {kind}, which is not one of {', '.join(DTYPES)}.")
  dtypes = [np.dtype(DTYPES[kind]) for kind in kinds]
  data = np.memmap(path, np.uint8, "r")
  sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes)]
  # The library has checked that the arrays fill the end of the file without gaps, in this order.
  ends = len(data) - sum(sizes) + np.cumsum(sizes, dtype=np.int64)
  return {
    name: data[end - size : end].view(dtype).reshape(shape)
    for name, end, size, dtype, shape in zip(names, ends, sizes, dtypes, shapes)
  }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays by name, atomically, to a file that PyTorch libraries can read."""
  # The library writes the memory of an array in its own order, so that must be row-major.
  rows = {name: np.asarray(x, order="C") for name, x in arrays.items()}
  with atomic_path(path) as temporary:
    save_file(rows, temporary, metadata={"format": "pt"})
