"""Reads and writes .safetensors files: the header's length, a JSON header, then the raw bytes."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError

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
  """Returns the arrays of a file by name, memory-mapped.

  Raises:
    UserError: the file is truncated, is not a .safetensors file, or has an unsupported dtype.
  """
  size = path.stat().st_size
  with open(path, "rb") as f:
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
      raise UserError(
        f"{path} is not a complete .safetensors file: it has only {size} bytes. "
        "Download it again; a file of about 130 bytes is a Git LFS pointer."
      )
    try:
      header = json.loads(f.read(length))
    except ValueError as error:
      raise UserError(f"{path} is not a .safetensors file: its header is not JSON.") from error
  header.pop("__metadata__", None)
  if header and size < 8 + length + max(entry["data_offsets"][1] for entry in header.values()):
    raise UserError(f"{path} is truncated: it has only {size} bytes. Download it again.")
  data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, np.uint8)
  arrays = {}
  for name, entry in header.items():
    if entry["dtype"] not in DTYPES:
      raise UserError(
        f"{path}: {name} has dtype {entry['dtype']}, which is not one of {', '.join(DTYPES)}."
      )
    start, end = entry["data_offsets"]
    arrays[name] = data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
  return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays by name to a file that PyTorch libraries can read."""
  names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
  header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
  at = 0
  for name, x in arrays.items():
    size = math.prod(x.shape) * x.dtype.itemsize
    header[name] = {"dtype": names[x.dtype], "shape": x.shape, "data_offsets": (at, at + size)}
    at += size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # Aligns the arrays for memory mapping.
  with open(path, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for x in arrays.values():
      f.write(np.ascontiguousarray(x).tobytes())
