"""Damaged files: a reader gives what is whole, a counted drop or one message, never a traceback."""

import bz2
from collections.abc import Callable
import gzip
import io
import json
import lzma
from pathlib import Path
from random import Random
import resource
import shutil
import signal
import tarfile

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq
import simplejpeg

from clip_jax.config import from_json
from clip_jax.data import ArrayRecord
from clip_jax.data.ingest import shards, webdataset
from clip_jax.data.npz_file import UnreadableNpz, read_npz
from clip_jax.data.outcomes import Dropped, Ledger, NotAskedFor
from clip_jax.data.records import write
from clip_jax.data.sample_parts import SampleParts
from clip_jax.data.score_file import write_scores
from clip_jax.data.score_filter import ScoreFilter
from clip_jax.data.sources.parquet import Parquet
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from faults.checkpoints import DamagedCheckpoint
from faults.commands import BYTES, Place
from mutations import damaged_bytes, damaged_json, damaged_values

GOLDEN = Path(__file__).parents[1] / "golden"
SECONDS = 60  # A reader that takes longer hangs.
JPEG = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))


def survives(read: Callable[[], object], *errors: type[Exception]) -> bool:
  """Whether the damage was noticed; the only accepted errors are messages of readable length."""
  try:
    read()
    return False
  except (UserError, *errors) as error:
    assert len(str(error)) < 3000
    return True


def read_all(source) -> None:
  """Reads the records as the pipeline and `prepare` do: a broken one is skipped and counted."""
  assert 0 <= len(source) < 2**63
  for i in range(min(len(source), 30)):
    try:
      source[i]
    except UserError:
      raise
    except Exception as error:
      assert str(error) is not None


def any_bytes(content: bytes, rng: Random) -> bytes:
  """Damages some bytes."""
  return next(damaged_bytes(content, 1, rng.getrandbits(32)))


def any_json(content: bytes, rng: Random) -> bytes:
  """Damages bytes of a JSON file, or values in it."""
  return rng.choice(list(damaged_json(content, 2, rng.getrandbits(32))))


class Checkpoint(DamagedCheckpoint):
  """A checkpoint of a run; the one before it is used."""


class Safetensors:
  """Weights of Hugging Face's and open_clip's models."""

  def __init__(self, folder: Path):
    self._models = []
    for name in ("huggingface_clip", "open_clip_siglip"):
      where = shutil.copytree(GOLDEN / name, folder / name)
      self._models.append((where, next(where.glob("*.safetensors"))))
    self._good = {path: path.read_bytes() for _, path in self._models}
    assert all(load_bundle(where) for where, _ in self._models)

  def __call__(self, rng: Random) -> bool:
    where, path = rng.choice(self._models)
    good = self._good[path]
    if rng.random() < 0.5:
      path.write_bytes(any_bytes(good, rng))
    else:  # In the header, which is a thousandth of the file.
      size = 8 + int.from_bytes(good[:8], "little")
      path.write_bytes(any_bytes(good[:size], rng) + good[size:])
    try:
      return survives(lambda: load_bundle(where))
    finally:
      path.write_bytes(good)


class Npz:
  """NumPy files: arrays, weights of big_vision's models, and scores."""

  def __init__(self, folder: Path):
    arrays = {"a": np.arange(24.0).reshape(2, 3, 4), "s": np.array(["x", "yü"]), "b/c": np.eye(3)}
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    write([{"image": JPEG, "text": "a"}] * 20, str(folder / "r.array_record"))
    self._path, source = folder / "x.npz", ArrayRecord(str(folder / "r.array_record"))
    write_scores(self._path, np.linspace(0, 1, 20, dtype=np.float32), source, model_fingerprint="x")
    self._forms = [
      (plain.getvalue(), read_npz),
      (packed.getvalue(), read_npz),
      ((GOLDEN / "big_vision/siglip.npz").read_bytes(), load_bundle),
      ((GOLDEN / "big_vision/lit.npz").read_bytes(), load_bundle),
      (self._path.read_bytes(), lambda path: ScoreFilter(source, str(path), keep="top 50%")),
    ]

    for good, read in self._forms:
      self._path.write_bytes(good)
      assert read(self._path)

  def __call__(self, rng: Random) -> bool:
    good, read = rng.choice(self._forms)
    self._path.write_bytes(any_bytes(good, rng))
    return survives(lambda: read(self._path), UnreadableNpz)


class Records:
  """Shards with a manifest."""

  def __init__(self, folder: Path):
    self._folder, listed = folder, []
    for k in range(2):
      path = folder / f"r-{k:05d}-of-00002.array_record"
      write([{"image": JPEG, "text": f"caption {i}", "n": i} for i in range(10)], str(path))
      size, digest = path.stat().st_size, shards.sha256(str(path))
      listed.append({"file": path.name, "records": 10, "bytes": size, "sha256": digest})
    self._manifest = json.dumps({"schema": 1, "records": 20, "shards": listed}).encode()
    (folder / "manifest.json").write_bytes(self._manifest)
    self._read()

  def _read(self):
    source = ArrayRecord(str(self._folder))
    read_all(source)
    source.verify()


class Manifest(Records):
  """The manifest.json of shards."""

  def __call__(self, rng: Random) -> bool:
    (self._folder / "manifest.json").write_bytes(any_json(self._manifest, rng))
    return survives(self._read)


class Shard(Records):
  """An ArrayRecord file, with a manifest or without one."""

  def __init__(self, folder: Path):
    super().__init__(folder)
    self._path = min(folder.glob("*.array_record"))
    self._good = self._path.read_bytes()

  def __call__(self, rng: Random) -> bool:
    (self._folder / "manifest.json").unlink(missing_ok=True)
    self._path.write_bytes(any_bytes(self._good, rng))
    if rng.random() < 0.5:
      return survives(lambda: read_all(ArrayRecord(str(self._folder))))
    (self._folder / "manifest.json").write_bytes(self._manifest)
    changed = self._path.read_bytes() != self._good
    assert survives(self._read) == changed  # Every change, because the manifest has checksums.
    return changed


class Config:
  """The config.json of a saved run."""

  def __init__(self, folder: Path):
    self._saved = [path.read_bytes() for path in GOLDEN.glob("clip_jax/*/workdir/config.json")]
    assert all(from_json(text.decode()) for text in self._saved)

  def __call__(self, rng: Random) -> bool:
    text = any_json(rng.choice(self._saved), rng).decode(errors="surrogateescape")
    return survives(lambda: from_json(text))


class ParquetTable:
  """A Parquet file, or the metadata that Hugging Face's libraries write into it."""

  def __init__(self, folder: Path):
    self._path = folder / "x.parquet"
    self._metadata = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    self._table = pa.table(
      {
        "image": pa.array([b"\xff\xd8" * 20] * 30),
        "caption": [f"caption {i}" for i in range(30)],
        "label": [i % 2 for i in range(30)],
      }
    )
    self._write(self._metadata)
    self._good = self._path.read_bytes()
    assert Parquet(str(self._path), label="label").classes == ("a", "b")

  def _write(self, metadata):
    described = self._table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(described, self._path, row_group_size=10)

  def __call__(self, rng: Random) -> bool:
    if rng.random() < 0.75:
      self._path.write_bytes(any_bytes(self._good, rng))
    else:
      self._write(next(damaged_values(self._metadata, 1, rng.getrandbits(32))))
    return survives(lambda: read_all(Parquet(str(self._path), label="label")))


class Tar:
  """A tar of pairs, plain or compressed."""

  def __init__(self, folder: Path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
      for i in range(3):
        for ending, content in ((".jpg", JPEG), (".txt", b"T" * 9), (".json", b'{"n": 1}')):
          info = tarfile.TarInfo("long/" * 40 + f"{i}{ending}")
          info.size = len(content)
          archive.addfile(info, io.BytesIO(content))
    self._forms = [
      compress(out.getvalue()) for compress in (bytes, gzip.compress, bz2.compress, lzma.compress)
    ]
    self._whole = self._outcomes(out.getvalue())
    assert len(self._whole) == 3

  def __call__(self, rng: Random) -> bool:
    data = any_bytes(rng.choice(self._forms), rng)
    return self._outcomes(data) != self._whole

  def _outcomes(self, data):
    """What becomes of the members, after a check that each is accounted for."""
    ledger, parts = Ledger("members"), SampleParts.of(None, None, ("n",))
    made = list(webdataset.samples(io.BytesIO(data), parts, lambda: ledger.find(1)))
    for outcome in made:
      if isinstance(outcome, NotAskedFor):
        ledger.leave(outcome)
      elif isinstance(outcome, Dropped):
        ledger.drop(outcome.reason, outcome.items)
      else:
        ledger.take(outcome)
    ledger.check("the tar")
    return made


FORMS = {
  "checkpoint": Checkpoint,
  "safetensors": Safetensors,
  "npz": Npz,
  "manifest": Manifest,
  "config": Config,
  "parquet": ParquetTable,
  "arrayrecord": Shard,
  "tar": Tar,
}


def attempt(form: str) -> Callable[[Place, Random], bool]:
  """Returns the rounds that damage a form of file."""

  def made(place):
    folder = place.new()
    folder.mkdir()
    return FORMS[form](folder)

  def one(place: Place, rng: Random) -> bool:
    damage = place.once(form, lambda: made(place))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    previous = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
      noticed = damage(rng)
    finally:
      signal.alarm(0)
      signal.signal(signal.SIGALRM, previous)
    assert peak() == before or peak() < BYTES
    return noticed

  return one


def _hangs(*_):
  raise AssertionError(f"A reader takes more than {SECONDS} seconds")
