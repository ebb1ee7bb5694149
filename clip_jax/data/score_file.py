"""Score files: one score per record of a source, with a fingerprint of that source.

A score file is a plain .npz: `np.load(path)["score"]` is float32 [n] in record order, with NaN for
records that could not be scored. A second entry, "header", is JSON with the number of records, the
fingerprint of the source, and facts about the model that the writer added.
"""

from collections.abc import Iterable
import hashlib
import json
import os
from typing import Any
import zipfile

import numpy as np

from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_PROBES = 64  # Records that a fingerprint reads.


def fingerprint(source: Source) -> str:
  """Computes a hash that identifies a source: its length and 64 evenly spaced records.

  Only images and texts enter the hash, not file paths, sharding or other fields. It detects another
  source, order or set of captions, but not one changed record among a million.
  """
  seen = hashlib.sha256(f"{len(source)}".encode())
  for i in sorted({len(source) * k // _PROBES for k in range(_PROBES)} | {len(source) - 1}):
    try:
      record = source[i]
    except UserError:
      raise
    except Exception:  # Unreadable records fail every time, so the hash stays stable.
      record = {}
    text = record.get("text", "")
    for part in (record.get("image", b""), *(text if isinstance(text, (list, tuple)) else [text])):
      part = _bytes(part)
      seen.update(len(part).to_bytes(8, "little") + part)
  return seen.hexdigest()[:16]


def _bytes(part):
  if isinstance(part, str):
    return part.encode("utf-8", "surrogatepass")
  # For other objects hash only the type name: their contents may differ from run to run.
  return bytes(part) if isinstance(part, (bytes, np.ndarray)) else type(part).__name__.encode()


def write_scores(
  path: str | os.PathLike, scores: np.ndarray | Iterable[np.ndarray], source: Source, **facts: Any
) -> None:
  """Writes the scores of a source's records atomically.

  Args:
    path: the file, by convention `NAME.npz`; an existing file is replaced.
    scores: float [n], or an iterable of consecutive chunks of it, so that they need not all be in
      memory.
    source: the source that the scores belong to.
    **facts: further header entries, JSON-serialisable.

  Raises:
    UserError: the number of scores differs from the number of records.
  """
  path = os.fspath(path)
  header = {
    **facts,
    "source": type(source).__name__,
    "records": len(source),
    "source_fingerprint": fingerprint(source),
  }
  partial = f"{path}.{os.getpid()}.partial"
  pieces = [scores] if isinstance(scores, np.ndarray) else scores
  written = 0
  try:
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:  # Uncompressed, for mmap.
      with file.open("header.npy", "w") as f:
        np.lib.format.write_array(f, np.array(json.dumps(header)))
      with file.open("score.npy", "w", force_zip64=True) as f:
        np.lib.format.write_array_header_1_0(
          f, {"descr": "<f4", "fortran_order": False, "shape": (len(source),)}
        )
        for piece in pieces:
          f.write(np.asarray(piece, "<f4").tobytes())
          written += len(piece)
    if written != len(source):
      raise UserError(
        f"{written:,} scores for {len(source):,} records of {type(source).__name__}. "
        "Give one score per record, NaN where there is none."
      )
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def read_scores(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
  """Reads a file written by `write_scores`.

  Returns:
    (scores, float32 [n], memory-mapped; the header).

  Raises:
    UserError: the file does not exist, is truncated, or is not a score file.
  """
  path = os.fspath(path)
  try:
    with zipfile.ZipFile(path) as file:
      with file.open("header.npy") as f:
        header = json.loads(str(np.lib.format.read_array(f)))
      member = file.getinfo("score.npy")
    with open(path, "rb") as f:
      # Skip the zip member's 30-byte local header, then the file name and the extra field; bytes 26
      # to 30 of the header hold their lengths.
      f.seek(member.header_offset + 26)
      f.seek(sum(np.frombuffer(f.read(4), "<u2").tolist()), os.SEEK_CUR)
      np.lib.format.read_magic(f)
      shape, _, dtype = np.lib.format.read_array_header_1_0(f)
      start = f.tell()
    scores = np.memmap(path, dtype, "r", start, shape)
    if scores.ndim != 1 or dtype != np.float32 or len(scores) != header["records"]:
      raise ValueError(f"it holds {dtype} {shape}")
    return scores, header
  except FileNotFoundError:
    raise UserError(
      f"No score file at {path}. Write one with python -m clip_jax.score "
      f"--model=MODEL --source=... --out={path}."
    ) from None
  except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
    raise UserError(
      f"{path} is damaged or not a score file: {error}. Write it again with "
      "python -m clip_jax.score or clip_jax.data.write_scores."
    ) from error
