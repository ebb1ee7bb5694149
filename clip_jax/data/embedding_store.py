"""Stored embeddings: shards of float16 arrays, one row per record, with a manifest of checksums.

A store is a folder with manifest.json and files embeddings-00000.safetensors and so on. Each has
some of the arrays

  image_features    float16 [n, V, D]   output of the image tower for V views of each image
  image_embeddings  float16 [n, V, E]   their unit vectors in the shared space
  text_features     float16 [n, K, D']  output of the text tower for up to K texts of each record
  text_embeddings   float16 [n, K, E]
  texts             int32 [n]           how many of the K texts the record has

The manifest has the fingerprints of the model, of its image tower and of the source.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any
import zlib

import numpy as np
import safetensors

from clip_jax.cli import values
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import atomic_path, write_atomically

FORMAT, MANIFEST = 1, "manifest.json"
ARRAYS = ("image_features", "image_embeddings", "text_features", "text_embeddings", "texts")
_FIELDS: dict[str, Any] = dict(
  format=values.PositiveInt,
  records=values.Records,
  views=values.PositiveInt,
  captions=values.PositiveInt,
  seed=values.Seed,
  scale=values.PositiveFraction | None,
  source_fingerprint=str,
  model=Mapping[str, Any],
  shards=tuple[Mapping[str, Any], ...],
)
_SHARD: dict[str, Any] = dict(file=str, records=values.Records, crc32=values.NonNegativeInt | int)


class EmbeddingStore:
  """A store of embeddings, opened for reading; picklable.

  Attributes:
    path: the folder.
    manifest: the content of manifest.json.
  """

  def __init__(self, path: str | Path, *, check: bool = True):
    """Opens a store.

    Args:
      path: the folder.
      check: whether to compare all files with their checksums.

    Raises:
      UserError: there is no store, it is incomplete, or a file does not match its checksum.
    """
    self.path = Path(path).expanduser()
    self.manifest = read_manifest(self.path)
    counts = [shard["records"] for shard in self.manifest["shards"]]
    if sum(counts) != self.manifest["records"]:
      raise UserError(
        f"The stored embeddings in {self.path} have {sum(counts):,} of "
        f"{self.manifest['records']:,} records. Rerun clip-jax embed to complete them."
      )
    self._ends = np.cumsum(counts)
    for shard in self.manifest["shards"] if check else ():
      file = self.path / shard["file"]
      if not file.is_file() or file_checksum(file) != shard["crc32"]:
        raise UserError(
          f"{file} is missing or does not match its checksum. Delete it and rerun clip-jax embed."
        )
    self._open: dict[int, dict[str, np.ndarray]] = {}

  def __len__(self) -> int:
    return self.manifest["records"]

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_open": {}}

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    """The arrays of record i, without their leading axis."""
    shard = int(np.searchsorted(self._ends, i, side="right"))
    if shard not in self._open:
      self._open[shard] = _read(self.path / self.manifest["shards"][shard]["file"])
    row = i - (self._ends[shard - 1] if shard else 0)
    return {name: x[row] for name, x in self._open[shard].items()}


def view_rng(seed: int, record: int, view: int) -> np.random.Generator:
  """Returns the random generator of a view of a record, the same when it is made again."""
  key = np.array([seed, record << 16 | view], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


def read_manifest(folder: Path) -> dict[str, Any]:
  """Reads and checks manifest.json.

  Raises:
    UserError: there is none, or it is malformed.
  """
  file = folder / MANIFEST
  if not file.is_file():
    raise UserError(
      f"There are no stored embeddings in {folder}: no {MANIFEST}. Write them with clip-jax embed."
    )
  found = read_json(file, dict, "Write it again with clip-jax embed.")
  values.check_fields(found, _FIELDS, str(file))
  missing = [name for name in _FIELDS if name not in found]
  if missing or found["format"] != FORMAT:
    raise UserError(f"{file} is not of format {FORMAT}: {', '.join(missing) or found['format']}.")
  for shard in found["shards"]:
    values.check_fields(shard, _SHARD, f"{file}, shards")
    if set(_SHARD) - set(shard) or Path(shard["file"]).name != shard["file"]:
      raise UserError(f"{file}: a shard is {values.shorten(shard)}.")
  return found


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
  """Writes manifest.json atomically."""
  write_atomically(folder / MANIFEST, json.dumps(dict(manifest), indent=1) + "\n")


def write_shard(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Writes a shard atomically and returns its entry in the manifest.

  Raises:
    UserError: a value is not finite in float16.
  """
  made = {}
  for name, x in arrays.items():
    made[name] = np.ascontiguousarray(x, np.int32 if name == "texts" else np.float16)
    if name != "texts" and not np.isfinite(made[name]).all():
      raise UserError(f"{name} has values that are not finite in float16, above 65,504.")
  name = f"embeddings-{number:05d}.safetensors"
  from safetensors.numpy import save_file

  with atomic_path(folder / name) as temporary:
    save_file(made, temporary)
  records = len(next(iter(made.values())))
  return {"file": name, "records": records, "crc32": file_checksum(folder / name)}


def file_checksum(path: Path) -> int:
  """Returns the CRC-32 of a file."""
  crc = 0
  with open(path, "rb") as f:
    while piece := f.read(2**22):
      crc = zlib.crc32(piece, crc)
  return crc


def _read(file):
  try:
    with safetensors.safe_open(file, framework="numpy") as opened:
      return {name: opened.get_tensor(name) for name in opened.keys() if name in ARRAYS}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{file} cannot be read: {error}. Rerun clip-jax embed.") from error
