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

from clip_jax.data.npz_file import read_member
from clip_jax.data.untrusted import open_regular
from clip_jax.errors import UserError
from clip_jax.files import atomic_path
from clip_jax.interfaces import Source

_LARGEST_HEADER = 2**20  # Bytes.
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
    hash_record(seen, record)
  return seen.hexdigest()[:16]


def hash_record(seen: Any, record: dict[str, Any]) -> None:
  """Adds the image and the texts of a record to a hash of hashlib."""
  text = record.get("text", "")
  for part in (record.get("image", b""), *(text if isinstance(text, (list, tuple)) else [text])):
    part = _bytes(part)
    seen.update(len(part).to_bytes(8, "little") + part)


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
  pieces = [scores] if isinstance(scores, np.ndarray) else scores
  written = 0
  with atomic_path(path) as temporary:
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:  # Uncompressed, for mmap.
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


def read_scores(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
  """Reads a file written by `write_scores`.

  Returns:
    (scores, float32 [n], memory-mapped; the header).

  Raises:
    UserError: the file does not exist, is truncated, or is not a score file.
  """
  path = os.fspath(path)
  try:
    with open_regular(path) as f:
      header, start, dtype, shape = _layout(f)
    scores = np.memmap(path, dtype, "r", start, shape)
    return scores, header
  except FileNotFoundError:
    raise UserError(
      f"No score file at {path}. Write one with python -m clip_jax.score "
      f"--model=MODEL --source=... --out={path}."
    ) from None
  except Exception as error:  # The libraries raise many kinds of errors for damaged files.
    raise UserError(
      f"{path} is damaged or not a score file: {error}. Write it again with "
      "python -m clip_jax.score or clip_jax.data.write_scores."
    ) from error


def _layout(file):
  """Returns the checked header, and where and what the scores are."""
  with zipfile.ZipFile(file) as archive:
    info, member = archive.getinfo("header.npy"), archive.getinfo("score.npy")
    if info.file_size > _LARGEST_HEADER:
      raise ValueError(f"its header has {info.file_size:,} bytes")
    header = json.loads(str(read_member(archive, info)))
  wanted = {"records": int, "source": str, "source_fingerprint": str}
  for name, kind in wanted.items():
    if type(header.get(name)) is not kind or len(str(header[name])) > 100:
      raise ValueError(f"{name} in its header is {header.get(name)!r:.100}")
  if member.compress_type != zipfile.ZIP_STORED:
    raise ValueError("its scores are compressed")
  # Skip the zip member's 30-byte local header, then the file name and the extra field; bytes 26
  # to 30 of the header hold their lengths.
  file.seek(member.header_offset + 26)
  file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), os.SEEK_CUR)
  begin = file.tell()
  np.lib.format.read_magic(file)
  shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  size = file.tell() - begin + header["records"] * dtype.itemsize
  if dtype != np.float32 or shape != (header["records"],) or size != member.file_size:
    raise ValueError(f"it holds {dtype} {shape}")
  return header, file.tell(), dtype, shape
