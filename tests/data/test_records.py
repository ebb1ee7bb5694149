"""ArrayRecord shards round-trip, and missing or truncated ones raise at once."""

import hashlib
import json
import pickle
import re
import threading
import types

from pyarrow import fs
import pytest

from clip_jax.data import ArrayRecord, paths, records as records_lib
from clip_jax.data.records import write
from clip_jax.errors import UserError


def records(n, start=0):
  return [
    {"image": bytes([i % 256]) * 3000, "text": ["é", str(i)], "score": 0.5, "n": i}
    for i in range(start, start + n)
  ]


@pytest.fixture
def shards(tmp_path):
  for i, count in enumerate((5, 1, 7)):
    write(records(count, start=(0, 5, 6)[i]), str(tmp_path / f"x-0000{i}-of-00003.array_record"))
  return tmp_path


def test_records_keep_their_order_over_all_shards(shards):
  source = ArrayRecord(str(shards))
  assert len(source) == 13
  assert [source[i] for i in range(13)] == records(13)
  assert list(source) == records(13)
  assert len(source.files) == 3


def test_paths_can_be_files_folders_or_patterns(shards):
  assert len(ArrayRecord(str(shards / "x-00002-of-00003.array_record"))) == 7
  assert len(ArrayRecord(str(shards / "x-0000[01]*"))) == 6
  assert len(ArrayRecord(shards)) == 13


def test_write_returns_the_count_and_is_atomic(tmp_path):
  path = tmp_path / "a.array_record"
  assert write(records(3), str(path)) == 3

  def broken():
    yield from records(2)
    raise RuntimeError("the disk is full")

  with pytest.raises(RuntimeError, match="the disk is full"):
    write(broken(), str(path))
  assert len(ArrayRecord(str(path))) == 3
  assert [p.name for p in tmp_path.iterdir()] == ["a.array_record"]
  assert write(records(4), str(path), compression="zstd:9") == 4
  assert list(ArrayRecord(str(path))) == records(4)


def test_the_manifest_is_read_if_there_is_one(shards):
  assert ArrayRecord(str(shards)).manifest == {}
  (shards / "manifest.json").write_text(json.dumps({"count": 13}))
  assert ArrayRecord(str(shards)).manifest == {"count": 13}
  (shards / "manifest.json").write_text("{")
  with pytest.raises(UserError, match="manifest.json is not JSON.*Write it again"):
    ArrayRecord(str(shards))


def test_a_source_is_picklable_and_thread_safe(shards):
  source = pickle.loads(pickle.dumps(ArrayRecord(str(shards))))
  wrong = []

  def read():
    wrong.extend(i for i in range(13) for _ in range(20) if source[i]["n"] != i)

  threads = [threading.Thread(target=read) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


@pytest.fixture
def bucket(shards, monkeypatch):
  """A gs:// URI that PyArrow and ArrayRecordReader are patched to read from a local folder."""
  where = fs.SubTreeFileSystem(str(shards.parent), fs.LocalFileSystem())
  monkeypatch.setattr(
    paths,
    "_remote_file_systems",
    lambda: types.SimpleNamespace(
      FileSystem=types.SimpleNamespace(from_uri=lambda uri: (where, uri.removeprefix("gs://"))),
      FileSelector=fs.FileSelector,
      FileType=fs.FileType,
    ),
  )
  real = records_lib.ArrayRecordReader
  monkeypatch.setattr(
    records_lib,
    "ArrayRecordReader",
    lambda file, **options: real(file.replace("gs:/", str(shards.parent)), **options),
  )
  return f"gs://{shards.name}"


def test_shards_in_a_bucket_are_found_counted_and_read(shards, bucket):
  assert list(ArrayRecord(bucket)) == records(13)
  assert len(ArrayRecord(f"{bucket}/x-0000[01]*")) == 6
  file = f"{bucket}/x-00002-of-00003.array_record"
  assert ArrayRecord(file).files == [file]
  listed = [
    {
      "file": p.name,
      "records": n,
      "bytes": p.stat().st_size,
      "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
    }
    for p, n in zip(sorted(shards.iterdir()), (5, 1, 7))
  ]
  (shards / "manifest.json").write_text(json.dumps({"shards": listed}))
  assert list(ArrayRecord(bucket)) == records(13) and ArrayRecord(bucket).verify() == 3
  (shards / "x-00001-of-00003.array_record").write_bytes(b"")
  with pytest.raises(UserError, match="gs://.*00001-of-00003.array_record is truncated or"):
    ArrayRecord(bucket)
  (shards / "x-00001-of-00003.array_record").unlink()
  with pytest.raises(UserError, match="1 of 3 shards are missing in gs://"):
    ArrayRecord(bucket)


def test_missing_remote_paths_raise(shards, bucket):
  (shards / "empty").mkdir()
  (shards / "empty/readme.md").write_text("-")
  with pytest.raises(UserError, match="No .*array_record files in gs://.*empty"):
    ArrayRecord(f"{bucket}/empty")
  with pytest.raises(UserError, match="There are no files at gs://.*nothing"):
    ArrayRecord(f"{bucket}/nothing*")
  with pytest.raises(UserError, match="s3://a/b: array_record reads local files and gs:"):
    ArrayRecord("s3://a/b")


@pytest.mark.parametrize("i", [13, -1])
def test_indices_out_of_range_raise(shards, i):
  with pytest.raises(IndexError, match=f"record {i} of 13"):
    ArrayRecord(str(shards))[i]


def test_missing_paths_raise(tmp_path):
  with pytest.raises(UserError, match="No records at .*nothing-here.*clip_jax.prepare"):
    ArrayRecord(str(tmp_path / "nothing-here*"))
  (tmp_path / "readme.txt").write_text("hello")
  with pytest.raises(UserError, match="No .*array_record files in .*contains readme.txt"):
    ArrayRecord(str(tmp_path))


def test_a_missing_shard_is_named(shards):
  (shards / "x-00001-of-00003.array_record").unlink()
  with pytest.raises(UserError, match="1 of 3 shards are missing in .*x-00001-of-00003"):
    ArrayRecord(str(shards))


@pytest.mark.parametrize("keep", [0, 100, 40_000, -1])
def test_a_truncated_shard_is_named(tmp_path, keep):
  path = tmp_path / "a.array_record"
  write(records(50), str(path))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(UserError, match=re.escape(str(path)) + ".* is truncated"):
    ArrayRecord(str(path))


def test_reading_a_record_with_a_flipped_byte_raises(tmp_path):
  path = tmp_path / "a.array_record"
  write(records(50), str(path))
  content = bytearray(path.read_bytes())
  at = content.index(bytes([7]) * 3000) + 1000
  content[at] ^= 1
  path.write_bytes(content)
  source = ArrayRecord(str(path))
  assert source[6] == records(50)[6]
  with pytest.raises(RuntimeError, match="hash mismatch"):
    source[7]
