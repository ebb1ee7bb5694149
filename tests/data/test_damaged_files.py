"""Damage to data files gives records, a counted drop or one message; see also faults/damage.py."""

import json
import os
import zipfile

import numpy as np
import pytest
import simplejpeg

from clip_jax.data import ArrayRecord, read_scores, write_scores
from clip_jax.data.ingest import inputs, shards
from clip_jax.data.records import write
from clip_jax.data.score_filter import ScoreFilter
from clip_jax.errors import UserError
from mutations import damaged_json, damaged_values

JPEG = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
RECORDS = [{"image": JPEG, "text": f"caption {i}", "n": i} for i in range(20)]


def attempt(read):
  """Whether `read` works; a UserError of readable length is the only accepted exception."""
  try:
    read()
    return True
  except UserError as error:
    assert len(str(error)) < 3000
    return False


@pytest.fixture
def prepared(tmp_path):
  """A folder as `prepare` writes it, and its job."""
  write(RECORDS, str(tmp_path / "in.array_record"))
  job = inputs.Job(str(tmp_path / "in.array_record"), "source", records_per_shard=10)
  out = tmp_path / "out"
  out.mkdir()
  for piece in range(2):
    shards.write_shard(job, piece, str(out))
  return job, out


@pytest.fixture
def folder(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  listed = []
  for k in range(2):
    path = out / f"r-{k:05d}-of-00002.array_record"
    write(RECORDS[10 * k : 10 * k + 10], str(path))
    size, digest = path.stat().st_size, shards.sha256(str(path))
    listed.append({"file": path.name, "records": 10, "bytes": size, "sha256": digest})
  (out / "manifest.json").write_text(json.dumps({"schema": 1, "records": 20, "shards": listed}))
  return out


@pytest.mark.parametrize(
  "manifest, message",
  [
    ({"shards": {}}, "shards is a dict, not a list"),
    ({"shards": ["x"]}, "shard 0 is 'x', without a file name"),
    ({"shards": [{"file": "x", "records": -1, "bytes": 1}]}, "records of shard 0 is -1"),
    ({"shards": [{"file": "x", "records": 1, "bytes": True}]}, "bytes of shard 0 is True"),
    ({"shards": [{"file": "x", "records": 1, "bytes": 1, "sha256": 7}]}, "sha256 of shard 0"),
  ],
)
def test_the_wrong_field_of_a_manifest_is_named(folder, manifest, message):
  (folder / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=f"{message}.*Write it again, or delete it"):
    ArrayRecord(str(folder))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_manifest_that_is_a_fifo_or_a_folder_is_one_message(folder, make):
  (folder / "manifest.json").unlink()
  make(folder / "manifest.json")
  with pytest.raises(UserError, match=r"manifest.json cannot be read"):
    ArrayRecord(str(folder))


def test_shards_that_are_fifos_or_links_out_of_the_folder_are_skipped(folder, tmp_path, caplog):
  (folder / "manifest.json").unlink()
  os.mkfifo(folder / "fifo.array_record")
  write(RECORDS[:3], str(tmp_path / "outside.array_record"))
  (folder / "link.array_record").symlink_to(tmp_path / "outside.array_record")
  assert len(ArrayRecord(str(folder))) == 20
  assert "skipped 1 FIFOs, devices or sockets, 1 links that leave the folder" in caplog.text
  assert len(ArrayRecord(f"{folder}/link*")) == 3  # A pattern follows links.


def test_damaged_notes_of_shards(prepared):
  job, out = prepared
  note = next(iter(sorted(out.glob("*.json"))))
  good = note.read_bytes()
  for damaged in damaged_json(good, 200):
    note.write_bytes(damaged)

    def use():
      shards.is_finished(job, 0, str(out))
      shards.write_manifest(job, str(out))

    attempt(use)
  note.write_bytes(good)
  assert shards.write_manifest(job, str(out))["read"] == 20


@pytest.fixture
def scores(folder):
  source = ArrayRecord(str(folder))
  path = folder.parent / "s.npz"
  write_scores(path, np.linspace(0, 1, 20, dtype=np.float32), source, model_fingerprint="x")
  return source, path


def test_a_score_file_with_a_damaged_header(scores):
  source, path = scores
  header, values = read_scores(path)[1], np.array(read_scores(path)[0])
  for damaged in damaged_values(header, 200):
    with zipfile.ZipFile(path, "w") as file:
      with file.open("header.npy", "w") as f:
        np.lib.format.write_array(f, np.array(json.dumps(damaged)))
      with file.open("score.npy", "w") as f:
        np.lib.format.write_array(f, values)
    attempt(lambda: ScoreFilter(source, str(path), keep="top 50%"))


@pytest.mark.parametrize(
  "header, scores, method",
  [
    ("x" * 2**21, np.zeros(20, np.float32), zipfile.ZIP_STORED),
    ('{"records": 20, "source": "A", "source_fingerprint": "x"}', np.zeros(20), 0),
    ('{"records": 20, "source": "A", "source_fingerprint": "x"}', np.zeros((20, 1), "f4"), 0),
    ('{"records": 21, "source": "A", "source_fingerprint": "x"}', np.zeros(20, "f4"), 0),
    ('{"records": 20, "source": "A", "source_fingerprint": "x"}', np.zeros(20, "f4"), 8),
    ('{"records": 20}', np.zeros(20, "f4"), 0),
    ("[1]", np.zeros(20, "f4"), 0),
  ],
  ids=range(7),
)
def test_a_score_file_of_another_form(tmp_path, header, scores, method):
  with zipfile.ZipFile(tmp_path / "s.npz", "w", method) as file:
    for name, x in (("header", np.array(header)), ("score", scores)):
      with file.open(f"{name}.npy", "w") as f:
        np.lib.format.write_array(f, x)
  with pytest.raises(UserError, match=r"s\.npz is damaged or not a score file"):
    read_scores(tmp_path / "s.npz")


def test_a_fifo_as_score_file_is_one_message(tmp_path):
  os.mkfifo(tmp_path / "s.npz")
  with pytest.raises(UserError, match="not a score file"):
    read_scores(tmp_path / "s.npz")
