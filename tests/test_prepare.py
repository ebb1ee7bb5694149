"""Tests of the prepare command: shards, manifest, resuming, and tokenizers."""

import hashlib
import io
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet as pq
import pytest

from clip_jax import prepare
from clip_jax.data import ArrayRecord, tokenizer as tokenizer_lib
from clip_jax.data.decode import decode
from clip_jax.data.ingest import shards
from clip_jax.data.records import write
from clip_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def jpeg(i, size=(24, 16)):
  out = io.BytesIO()
  Image.new("RGB", size, (i % 256, i // 256, 99)).save(out, "JPEG", quality=95)
  return out.getvalue()


def tar(path, members):
  with tarfile.open(path, "w") as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def pair(i, **notes):
  name = f"{i:09d}"
  notes = {"url": f"http://{i}", "license": "CC0" if i % 2 else "CC-BY", "sha256": "-", **notes}
  return [
    (f"{name}.jpg", jpeg(i)),
    (f"{name}.json", json.dumps(notes).encode()),
    (f"{name}.txt", f"caption {i}".encode()),
  ]


@pytest.fixture
def tars(tmp_path):
  folder = tmp_path / "tars"
  folder.mkdir()
  for k in range(4):
    tar(folder / f"{k:05d}.tar", [m for i in range(10 * k, 10 * k + 10) for m in pair(i)])
  return folder


def run(*arguments):
  prepare.main([str(a) for a in arguments])


def content(folder):
  """Returns the bytes of all files in a folder, by name."""
  return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_tars_become_shards_with_notes_and_a_manifest(tars, tmp_path, capsys):
  out = tmp_path / "out"
  run(
    f"--from={tars}/*.tar",
    "--format=webdataset",
    f"--out={out}",
    "--licence=mixed",
    "--source=the web",
  )
  source = ArrayRecord(out)
  assert [dict(r) for r in source] == [
    {
      "key": f"{i:09d}",
      "image": jpeg(i),
      "text": f"caption {i}",
      "url": f"http://{i}",
      "license": "CC0" if i % 2 else "CC-BY",
    }
    for i in range(40)
  ]
  manifest = source.manifest
  assert (manifest["records"], manifest["read"], manifest["schema"]) == (40, 40, 1)
  assert (manifest["licence"], manifest["source"]) == ("mixed", "the web")
  assert manifest["values"] == {"license": {"CC-BY": 20, "CC0": 20}}
  assert manifest["dropped"] == manifest["changed"] == {}
  for k, shard in enumerate(manifest["shards"]):
    data = (out / shard["file"]).read_bytes()
    assert shard["file"] == f"records-{k:05d}-of-00004.array_record"
    assert shard["sha256"] == hashlib.sha256(data).hexdigest() and shard["bytes"] == len(data)
    assert shard["input"] == f"{k:05d}.tar" and shard["records"] == 10
  assert manifest["bytes"] == sum(s["bytes"] for s in manifest["shards"])
  printed = capsys.readouterr()
  assert "40 records" in printed.out
  assert re.search(r"^4/4 shards  100%  .*  40 records  0 dropped", printed.err, re.M)


def test_every_record_is_kept_or_counted_as_dropped(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  turned, cmyk = io.BytesIO(), io.BytesIO()
  Image.new("RGB", (24, 16)).save(turned, "JPEG", exif=exif)
  Image.new("CMYK", (24, 16)).save(cmyk, "JPEG")
  text, j = (".txt", b"x"), jpeg(1)
  samples = [
    [(".jpg", turned.getvalue()), text],
    [(".jpg", cmyk.getvalue()), text],
    [(".jpg", jpeg(0, (900, 600))), text],
    [(".jpg", j), (".txt", b"long " * 20_000)],
    [(".jpg", j), text, (".json", b"{")],
    [(".jpg", j), (".txt", b" ")],
    [(".jpg", j), text, (".json", b'{"url": "half \\ud83d"}')],
    [(".jpg", j), text, (".json", b'{"url": %d}' % 2**64)],
    [(".jpg", j), (".txt", b"\xff")],
    [(".jpg", j)],
    [text],
    [(".jpg", j[:-100]), text],
    [(".jpg", b"P6 60000 60000 255\n"), text],
  ]
  members = [(f"{k:03d}{end}", data) for k, sample in enumerate(samples) for end, data in sample]
  odd = [("\udcff.jpg", j), ("\udcff.txt", b"x")]  # A name that is not UTF-8.
  tar(tmp_path / "a.tar", [("../x.jpg", j), *members, *odd, *pair(99)])
  tar(tmp_path / "b.tar", pair(100) + pair(101))
  cut = (tmp_path / "b.tar").read_bytes()[: 6 * 1024 - 600]
  (tmp_path / "b.tar").write_bytes(cut)
  out = tmp_path / "out"
  run(f"--from={tmp_path}", "--format=webdataset", f"--out={out}", "--max_side=512")
  source = ArrayRecord(out)
  manifest = source.manifest
  assert manifest["dropped"] == {
    "empty text": 1,
    "invalid UTF-8": 1,
    "no image": 1,
    "no text": 1,
    "too many pixels": 1,
    "truncated tar": 1,
    "unreadable image": 1,
    "unsafe path": 1,
    "unwritable field": 2,
  }
  assert manifest["changed"] == {
    "CMYK": 1,
    "name not UTF-8": 1,
    "resized": 1,
    "text cut": 1,
    "turned": 1,
    "unreadable JSON": 1,
  }
  assert manifest["read"] == len(source) + sum(manifest["dropped"].values()) == 8 + 10
  items = manifest["items"]
  assert (items["unit"], items["found"], items["read"]) == ("tar members", 38, 19)
  assert items["not_asked_for"] == {} and sum(items["dropped"].values()) == 19
  assert items["dropped"]["truncated tar"] == 2  # An image, and what followed.
  shapes = [decode(r["image"]).shape[:2] for r in source]
  assert shapes[:3] == [(24, 16), (16, 24), (341, 512)] and set(shapes[3:]) == {(16, 24)}
  assert max(len(r["text"]) for r in source) <= 2000
  assert not list(tmp_path.parent.glob("x.jpg"))


def test_the_bytes_do_not_depend_on_processes_or_machines(tars, tmp_path, capsys):
  common = (f"--from={tars}/*.tar", "--format=webdataset")
  run(*common, f"--out={tmp_path}/one")
  run(*common, f"--out={tmp_path}/two", "--processes=2")
  assert content(tmp_path / "one") == content(tmp_path / "two")
  for part in (2, 0, 1):
    assert not (tmp_path / "three/manifest.json").exists()
    run(*common, f"--out={tmp_path}/three", f"--shard={part}/3")
  assert content(tmp_path / "one") == content(tmp_path / "three")
  out = capsys.readouterr().out
  assert "Part 2 of 3 is done; " in out and out.count("the last part to finish") == 2


def test_a_rerun_writes_only_missing_truncated_or_changed_shards(tars, tmp_path, monkeypatch):
  out = tmp_path / "out"
  again = (f"--from={tars}", "--format=webdataset", f"--out={out}")
  run(*again)
  whole, made, real = content(out), [], shards.write_shard
  monkeypatch.setattr(
    shards, "write_shard", lambda job, piece, out: (made.append(piece), real(job, piece, out))[1]
  )
  run(*again)
  assert made == [] and content(out) == whole
  (out / "manifest.json").unlink()
  (out / "records-00000-of-00004.json").unlink()
  os.truncate(out / "records-00002-of-00004.array_record", 1000)
  (out / ".records-00002-of-00004.array_record.0123abcd.tmp").write_bytes(b"half")
  run(*again)
  assert made == [0, 2] and content(out) == whole
  tar(tars / "00003.tar", pair(7))
  run(*again)
  assert made == [0, 2, 3] and len(ArrayRecord(out)) == 31


def runs(pid):
  """Whether a process is running, that is, exists and is not a zombie."""
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_run_writes_the_same_bytes(tmp_path, processes):
  rng = np.random.default_rng(0)
  images = []
  for _ in range(8):
    out = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(300, 300, 3), dtype=np.uint8)).save(out, "JPEG")
    images.append(out.getvalue())
  (tmp_path / "tars").mkdir()
  for k in range(6):
    tar(
      tmp_path / f"tars/{k}.tar",
      [
        member
        for i in range(60)
        for member in ((f"{i}.jpg", images[i % 8]), (f"{i}.txt", f"{k} {i}".encode()))
      ],
    )
  arguments = [
    f"--from={tmp_path}/tars",
    "--format=webdataset",
    "--max_side=200",
    f"--processes={processes}",
  ]
  out = tmp_path / "broken"
  process = subprocess.Popen(
    [sys.executable, "-m", "clip_jax.prepare", *arguments, f"--out={out}"],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  started = time.monotonic()
  while not list(out.glob("records*.json")):
    assert process.poll() is None and time.monotonic() - started < 120
    time.sleep(0.005)
  children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  assert len(children) == (processes > 1) * (processes + 1)  # Plus the resource tracker.
  os.kill(process.pid, signal.SIGKILL)  # Its workers must notice by themselves.
  process.wait()
  started = time.monotonic()
  while any(map(runs, children)):
    assert time.monotonic() - started < 20
    time.sleep(0.1)
  done = len(list(out.glob("records*.json")))
  assert 1 <= done < 6 and not (out / "manifest.json").exists()
  run(*arguments, f"--out={out}")
  run(*arguments[:-1], f"--out={tmp_path}/unbroken")
  assert content(out) == content(tmp_path / "unbroken")
  assert len(ArrayRecord(out)) == 360


def preparing_in_two_processes(out):
  """A command that has written its first shard."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # It may have been ignored.
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "clip_jax.prepare",
      "--from=openclipart",
      "--format=source",
      "--records_per_shard=5",
      "--processes=2",
      f"--out={out}",
    ],
    cwd=ROOT,
    text=True,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  signal.signal(signal.SIGINT, before)
  started = time.monotonic()
  while not list(out.glob("records*.json")):
    assert process.poll() is None and time.monotonic() - started < 120
    time.sleep(0.005)
  return process


def test_ctrl_c_ends_all_processes_with_a_single_message(tmp_path):
  process = preparing_in_two_processes(tmp_path)
  os.killpg(process.pid, signal.SIGINT)  # As a terminal would.
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130 and "Traceback" not in stderr
  assert stderr.strip().splitlines()[-1].startswith("Stopped. ")
  assert not (tmp_path / "manifest.json").exists()


@pytest.mark.slow
def test_killed_process_is_reported_in_a_single_message(tmp_path):
  process = preparing_in_two_processes(tmp_path)
  children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  worker = next(i for i in children if b"spawn_main" in Path(f"/proc/{i}/cmdline").read_bytes())
  os.kill(int(worker), signal.SIGKILL)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 2 and "Traceback" not in stderr
  assert "error: One of the processes that write shards was killed" in stderr
  assert not (tmp_path / "manifest.json").exists()


def test_parquet_becomes_shards(tmp_path):
  rows = [{"jpg": jpeg(i), "title": ["", f"t {i}"], "url": f"u{i}", "width": 5} for i in range(25)]
  rows[3]["jpg"] = b"broken"
  rows[4]["jpg"] = None
  for k in range(2):
    pq.write_table(pa.Table.from_pylist(rows[k::2]), tmp_path / f"{k}.parquet", row_group_size=4)
  run(
    f"--from={tmp_path}/*.parquet",
    "--format=parquet",
    "--image=jpg",
    "--text=title",
    f"--out={tmp_path}/out",
    "--records_per_shard=10",
  )
  source = ArrayRecord(tmp_path / "out")
  wanted = [i for i in (*range(0, 25, 2), *range(1, 25, 2)) if i not in (3, 4)]
  assert list(source) == [{"image": jpeg(i), "text": [f"t {i}"], "url": f"u{i}"} for i in wanted]
  assert source.manifest["dropped"] == {"no image": 1, "unreadable image": 1}
  assert [s["input"] for s in source.manifest["shards"]] == [
    "0-9 of 25",
    "10-19 of 25",
    "20-24 of 25",
  ]
  run(
    f"--from={tmp_path}/*.parquet",
    "--format=parquet",
    "--image=jpg",
    "--text=title",
    "--fields=width",
    f"--out={tmp_path}/two",
  )
  assert set(ArrayRecord(tmp_path / "two")[0]) == {"image", "text", "width"}


def test_texts_with_invalid_utf8_are_counted(tmp_path):
  table = pa.table({"image": [jpeg(1), jpeg(2)], "caption": [b"\xc3\xa9", b"\xc3"]})
  pq.write_table(table, tmp_path / "a.parquet")
  run(f"--from={tmp_path}", "--format=parquet", f"--out={tmp_path}/out")
  source = ArrayRecord(tmp_path / "out")
  assert [r["text"] for r in source] == ["é"]
  assert source.manifest["dropped"] == {"invalid UTF-8": 1}


def test_folders_become_shards(tmp_path):
  folder = tmp_path / "in"
  for name in ("cat/1.jpg", "dog/2.jpg"):
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(jpeg(int(name[4])))
  (folder / "c.csv").write_text(
    "image,caption,author\ncat/1.jpg,a cat,A\ndog/2.jpg,a dog,B\ngone.jpg,gone,C\n"
  )
  run(
    f"--from={folder}",
    "--format=folder",
    "--captions=c.csv",
    "--fields=author",
    f"--out={tmp_path}/table",
  )
  source = ArrayRecord(tmp_path / "table")
  assert list(source) == [
    {"image": jpeg(1), "text": "a cat", "key": "cat/1.jpg", "author": "A"},
    {"image": jpeg(2), "text": "a dog", "key": "dog/2.jpg", "author": "B"},
  ]
  assert source.manifest["dropped"] == {"no image": 1}
  run(f"--from={folder}", "--format=folder", "--classes", f"--out={tmp_path}/classes")
  assert list(ArrayRecord(tmp_path / "classes")) == [
    {"image": jpeg(1), "key": "cat/1.jpg", "label": 0},
    {"image": jpeg(2), "key": "dog/2.jpg", "label": 1},
  ]


def test_any_source_becomes_shards(tmp_path):
  config = tmp_path / "scenes.py"
  config.write_text("""
from clip_jax.config import call
from clip_jax.data.sources.shapes import Shapes
from ml_collections import ConfigDict

def get_config(size="5"):
  source = call(Shapes, size=int(size))
  return source if size == "5" else ConfigDict({"data": {"source": source}})
""")
  from clip_jax.data.sources.shapes import Shapes

  for argument, count in (("", 5), (":7", 7)):
    out = tmp_path / f"out{count}"
    run(f"--from={config}{argument}", "--format=source", f"--out={out}", "--records_per_shard=3")
    source = ArrayRecord(out)
    assert len(source) == count and len(source.files) == -(-count // 3)
    for one, other in zip(source, Shapes(count)):
      np.testing.assert_array_equal(decode(one["image"]), other["image"])
      assert (one["text"], one["label"]) == (other["text"], other["label"])
  run(f"--from={out}", "--format=source", f"--out={tmp_path}/again", "--max_side=32")
  assert len(ArrayRecord(tmp_path / "again")) == 7
  assert ArrayRecord(tmp_path / "again").manifest["changed"] == {"resized": 7}


def test_opening_detects_truncated_shards_and_verify_changed_bytes(tars, tmp_path, capsys):
  out = tmp_path / "out"
  run(f"--from={tars}", "--format=webdataset", f"--out={out}")
  run("--verify", f"--out={out}")
  assert "4 shards match their checksums" in capsys.readouterr().out
  shard = out / "records-00001-of-00004.array_record"
  data = bytearray(shard.read_bytes())
  data[5000] ^= 1
  shard.write_bytes(data)
  assert len(ArrayRecord(out)) == 40
  with pytest.raises(UserError, match="1 of 4 shards do not match their checksums: .*00001-of"):
    run("--verify", f"--out={out}")
  shard.write_bytes(data[:-1])
  with pytest.raises(
    UserError,
    match="00001-of-00004.array_record is truncated or was replaced: .*, but manifest.json lists",
  ):
    ArrayRecord(out)
  shard.write_bytes(data)
  (out / "manifest.json").unlink()
  with pytest.raises(UserError, match="has no checksum: no manifest.json"):
    ArrayRecord(out).verify()


def test_a_folder_with_other_settings_or_another_set_is_rejected(tars, tmp_path):
  out = tmp_path / "out"
  again = (f"--from={tars}", "--format=webdataset", f"--out={out}")
  run(*again)
  with pytest.raises(
    UserError, match="written with other settings: max_side None, not 8. .*another --out"
  ):
    run(*again, "--max_side=8")
  tar(tars / "9.tar", pair(7))
  with pytest.raises(
    UserError, match="contains records-00000-of-00004.array_record, but the input gives 5 shards"
  ):
    run(*again)


def test_a_set_without_usable_records_is_rejected(tmp_path):
  tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("2.txt", b"x"), ("3.txt", b"x")])
  with pytest.raises(
    UserError,
    match="None of the 3 records of .* can be used: 2 no image, 1 no text. Check --format",
  ):
    run(f"--from={tmp_path}", "--format=webdataset", f"--out={tmp_path}/out")


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--form=x",), "There is no flag --form; .*Did you mean --from|Did you mean --format"),
    ((), "What should be prepared. Set --from"),
    (("--from=x", "--out=y"), "Which format. Set --format to one of webdataset, parquet, table"),
    (("--from=x", "--format=tar", "--out=y"), "--format=tar is not one of webdataset"),
    (("--from=x", "--format=parquet"), "Where should the shards be written"),
    (
      ("--from=x", "--format=parquet", "--out=gs://b/c"),
      "gs://b/c is a URL, .* folder",
    ),
    (("--from=none/*.tar", "--format=webdataset", "--out=y"), "no files at none/"),
    (
      ("--from=x", "--format=webdataset", "--out=y", "--records_per_shard=5"),
      "--records_per_shard does not apply to --format=webdataset, only to --format=parquet",
    ),
    (("--from=x", "--processes=0"), "--processes=0 is not an integer of at least 1"),
    (("--from=x", "--max_side=big"), "--max_side=big is not an integer of at least 1"),
    (("--from=x", "--format=folder", "--out=y", "--quality=101"), "--quality=101 is not between"),
    (("--from=x", "--format=folder", "--out=y", "--shard=3/3"), "--shard=3/3 is not I/N"),
    (("--from=x", "--format=folder", "--out=y", "--shard=a"), "--shard=a is not I/N"),
    (("--from=x", "--format=folder", "--out=y"), "There is no folder x"),
    (("--from=laion", "--format=source", "--out=y"), "--from=laion is not a source; expected"),
    (("--verify",), "Which shards. Set --out=DIR"),
    (("--from=x", "--format=folder", "--tokenizer=y"), "--tokenizer works with --format=source"),
    (("--from=x", "--tokenizer=y", "--out=z"), "--out does not apply to --tokenizer, only to"),
    (("--out=x", "--verify", "--from=y"), "--from does not apply to --verify"),
    (("--from=x", "--format=table", "--out=y", "--pieces=5"), "--pieces does not apply to"),
    (("--from=x", "--format=source", "--out=y", "--fields=url"), "--fields does not apply to"),
    (("--from=x", "--format=source", "--out=y", "--classes"), "--classes does not apply to"),
    (("--from=.", "--format=folder", "--out=y", "--classes", "--text=t"), "--text does not apply"),
    (("--from=.", "--format=folder", "--out=y", "--classes", "--captions=t"), "Set only one of"),
    (("--from=x", "--format=parquet", "--out=y", "--delimiter=,"), "--delimiter does not apply"),
    (("--from=x", "--format=table", "--out=y", "--key_dot=last"), "only to --format=webdataset"),
    (("--from=x", "--format=table", "--out=y", "--quotes=no"), "--quotes=no is not one of csv"),
    (("--from=x", "--format=table", "--out=y"), "There is no table x"),
    (
      ("--from=laion", "--tokenizer=a.model"),
      "--from=laion is not a source; expected openclipart, a config file .*: No records at laion",
    ),
    (("--from=openclipart", "--tokenizer=missing/a.model"), "there is no folder missing"),
  ],
)
def test_an_invalid_flag_is_rejected(arguments, message):
  with pytest.raises(UserError, match=message):
    run(*arguments)


def test_an_empty_input_is_rejected(tmp_path):
  none = pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
  pq.write_table(none, tmp_path / "a.parquet")
  with pytest.raises(UserError, match="a.parquet has no records"):
    run(f"--from={tmp_path}/a.parquet", "--format=parquet", f"--out={tmp_path}/out")


def test_the_command_reproduces_the_packaged_tokenizer(tmp_path, capsys):
  path = tmp_path / "new.model"
  run("--from=openclipart", "--format=source", f"--tokenizer={path}", "--pieces=4096")
  assert "4,096 pieces" in capsys.readouterr().out
  shipped = tokenizer_lib._FOLDER / "openclipart-4k.model"
  pieces = [tokenizer_lib.SentencePiece(str(p))._processor for p in (path, shipped)]
  mine, theirs = ([m.id_to_piece(i) for i in range(4096)] for m in pieces)
  assert mine == theirs


def test_a_tokenizer_can_be_trained_on_prepared_shards(tmp_path, capsys):
  write(
    [{"image": b"", "text": [f"The {w} walks", f"a {w}"]} for w in ("cat", "dog", "ox") * 50],
    str(tmp_path / "a.array_record"),
  )
  run(f"--from={tmp_path}", f"--tokenizer={tmp_path}/a.model", "--pieces=40")
  assert "a.model: " in capsys.readouterr().out
  tokens = tokenizer_lib.SentencePiece(f"{tmp_path}/a.model", context_length=8)(["the OX walks"])
  assert (tokens != 1).all() and (tokens > 0).sum() >= 4


def command(*arguments):
  """Runs the command in a process of its own."""
  return subprocess.run(
    [sys.executable, "-m", "clip_jax.prepare", *arguments],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=ROOT,
  )


@pytest.mark.parametrize("processes", [1, 2])
def test_links_out_of_a_folder_and_fifos_are_dropped_and_counted(tmp_path, processes):
  images = tmp_path / "images"
  images.mkdir()
  (tmp_path / "private.jpg").write_bytes(jpeg(1))
  (images / "good.jpg").write_bytes(jpeg(2))
  (images / "link.jpg").symlink_to(tmp_path / "private.jpg")
  os.mkfifo(images / "fifo.jpg")
  rows = [{"image": f"{name}.jpg", "caption": name} for name in ("good", "link", "fifo", "gone")]
  (images / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  ran = command(
    f"--from={images}",
    "--format=folder",
    f"--out={tmp_path}/out",
    f"--processes={processes}",
    "--records_per_shard=2",
  )
  assert ran.returncode == 0, ran.stderr
  assert "dropped: 2 not a file, 1 no image" in ran.stdout
  assert [record["text"] for record in ArrayRecord(f"{tmp_path}/out")] == ["good"]


def test_tars_that_are_links_out_of_the_folder_are_skipped_with_one_warning(tmp_path, tars):
  (tmp_path / "private.tar").write_bytes((tars / "00000.tar").read_bytes())
  (tars / "00004.tar").symlink_to(tmp_path / "private.tar")
  os.mkfifo(tars / "00005.tar")
  ran = command(f"--from={tars}", "--format=webdataset", f"--out={tmp_path}/out", "--processes=2")
  assert ran.returncode == 0 and "40 records" in ran.stdout, ran.stderr
  assert ran.stderr.count("skipped 1 FIFOs, devices or sockets, 1 links that leave") == 1
