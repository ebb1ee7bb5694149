"""The side file of a source: one score per record, and whose they are.

It is an .npz file that NumPy alone can read, `np.load(path)["score"]`, float32 [n] in the order of
the records; NaN marks a record that could not be scored. Beside it lies "header", JSON: the number
of records and the fingerprint of the source, and what the writer knew of the model.
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

_PROBES = 64  # Records that a fingerprint looks at.


def fingerprint(source: Source) -> str:
  """Tells one source from another: their number of records, and 64 of them, evenly spread.

  Images and texts count; where the files lie, how many there are and what else a record holds does
  not. One other record among a million is not noticed, another order, source or captions are.
  """
  seen = hashlib.sha256(f"{len(source)}".encode())
  for i in sorted({len(source) * k // _PROBES for k in range(_PROBES)} | {len(source) - 1}):
    try:
      record = source[i]
    except UserError:
      raise
    except Exception:  # Whatever a reader throws at broken bytes; it does so again next time.
      record = {}
    text = record.get("text", "")
    for part in (record.get("image", b""), *(text if isinstance(text, (list, tuple)) else [text])):
      part = _bytes(part)
      seen.update(len(part).to_bytes(8, "little") + part)
  return seen.hexdigest()[:16]


def _bytes(part):
  if isinstance(part, str):
    return part.encode("utf-8", "surrogatepass")
  # Of anything but bytes and pixels its type alone: the rest of it may differ from run to run.
  return bytes(part) if isinstance(part, (bytes, np.ndarray)) else type(part).__name__.encode()


def write_scores(path: str | os.PathLike, scores: np.ndarray | Iterable[np.ndarray], source: Source,
                 **facts: Any) -> None:
  """Writes the scores of a source's records, whole or not at all.

  Args:
    path: the file, by convention `NAME.npz`; one that exists is replaced.
    scores: float [n]; or pieces of it one after the other, so that not all need be in memory.
    source: whose scores they are.
    **facts: whatever else the header should tell, of what JSON can hold.

  Raises:
    UserError: the scores are not as many as the records.
  """
  path = os.fspath(path)
  header = {**facts, "source": type(source).__name__, "records": len(source),
            "source_fingerprint": fingerprint(source)}
  partial = f"{path}.{os.getpid()}.partial"
  pieces = [scores] if isinstance(scores, np.ndarray) else scores
  written = 0
  try:
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:  # Stored, to be mapped.
      with file.open("header.npy", "w") as f:
        np.lib.format.write_array(f, np.array(json.dumps(header)))
      with file.open("score.npy", "w", force_zip64=True) as f:
        np.lib.format.write_array_header_1_0(
            f, {"descr": "<f4", "fortran_order": False, "shape": (len(source),)})
        for piece in pieces:
          f.write(np.asarray(piece, "<f4").tobytes())
          written += len(piece)
    if written != len(source):
      raise UserError(f"{written:,} scores for {len(source):,} records of {type(source).__name__}. "
                      "Give one to each record, NaN where there is none.")
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def read_scores(path: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
  """What `write_scores` wrote.

  Returns:
    float32 [n], mapped from the file, not read; and the header.

  Raises:
    UserError: no such file, or it is cut off, or not a file of scores.
  """
  path = os.fspath(path)
  try:
    with zipfile.ZipFile(path) as file:
      with file.open("header.npy") as f:
        header = json.loads(str(np.lib.format.read_array(f)))
      member = file.getinfo("score.npy")
    with open(path, "rb") as f:
      # The array begins behind the member's own header, whose last two fields have these lengths.
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
    raise UserError(f"There are no scores at {path}. Write some with python -m clip_jax.score "
                    f"--from=MODEL --source=... --out={path}.") from None
  except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
    raise UserError(
        f"{path} is not a file of scores, or it is damaged: {error}. Write it again with "
        "python -m clip_jax.score, or clip_jax.data.write_scores.") from error
