"""Tests of the inputs of `prepare`: what was found is read, dropped or not asked for."""

import gzip
import io
import json
import tarfile

from PIL import Image
import pyarrow as pa
from pyarrow import parquet as pq
import pytest

from clip_jax import prepare
from clip_jax.data import ArrayRecord
from clip_jax.data.ingest import inputs, shards
from clip_jax.data.outcomes import Ledger, UncountedItems
from clip_jax.data.sources.caption_table import CaptionTable
from clip_jax.errors import UserError
from mutations import damaged_bytes


def jpeg(i=0):
  out = io.BytesIO()
  Image.new("RGB", (9, 8), (i, 99, 7)).save(out, "JPEG")
  return out.getvalue()


def tar(members):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return out.getvalue()


def run(out, *flags):
  prepare.main([f"--out={out}", *map(str, flags)])
  return ArrayRecord(str(out))


def counts(source):
  items = source.manifest["items"]
  return items["found"], items["read"], items["dropped"], items["not_asked_for"]


@pytest.fixture
def photos(tmp_path):
  (tmp_path / "photos").mkdir()
  for i in range(4):
    (tmp_path / f"photos/{i}.jpg").write_bytes(jpeg(i))
  return tmp_path / "photos"


def test_tables_become_shards(photos, tmp_path, capsys):
  lines = ["filepath;title;url", "0.jpg;one;u0", "1.jpg;two;u1", "0.jpg;three;u2", "gone.jpg;x;u3"]
  lines += ["2.jpg;a;b;c", "3.jpg;;u4", '3.jpg;"open;u5', "3.jpg;four;u6"]
  (tmp_path / "pairs.csv").write_text("\n".join(lines))
  flags = (f"--from={tmp_path}/pairs.csv", "--format=table", f"--image_root={photos}")
  with pytest.raises(UserError, match="line 6: too many fields"):
    run(tmp_path / "out", *flags)
  source = run(tmp_path / "out", *flags, "--on_error=skip", "--records_per_shard=2")
  assert [(r["key"], r["text"], r["url"]) for r in source] == [
    ("0.jpg", ["one", "three"], "u0"),
    ("1.jpg", "two", "u1"),
    ("3.jpg", ["four"], "u4"),
  ]
  assert source.manifest["changed"] == {"one of several texts left out: empty text": 1}
  dropped = {"no image": 1, "too many fields": 1, "unclosed quote": 1}
  assert source.manifest["dropped"] == dropped
  assert counts(source) == (8, 5, dropped, {})
  printed = capsys.readouterr().out
  assert (
    "images from column 'filepath', texts from 'title'; delimiter semicolon, guessed" in printed
  )
  assert "rows: found 8 = read 5 + dropped 3 + not asked for 0" in printed


def test_folders_with_caption_files_become_shards(photos, tmp_path):
  (photos / "0.txt").write_text("zero")
  (photos / "1.json").write_text(json.dumps({"caption": "one", "license": "CC0"}))
  (photos / "2.caption").write_bytes(b"\xff")
  (photos / ".DS_Store").touch()
  (photos / "notes.md").touch()
  source = run(tmp_path / "out", f"--from={photos}", "--format=folder")
  assert [(r["key"], r["text"], r.get("license")) for r in source] == [
    ("0.jpg", "zero", None),
    ("1.jpg", "one", "CC0"),
  ]
  assert counts(source) == (9, 4, {"invalid UTF-8": 2, "no text": 1}, {".md": 1, "hidden": 1})


def test_the_captions_of_a_folder_are_found(photos, tmp_path):
  flags = (f"--from={photos}", "--format=folder")
  with pytest.raises(UserError, match=r"has no captions: no table .* Set --classes if"):
    run(tmp_path / "out", *flags)
  (photos / "metadata.csv").write_text("file_name,text\n1.jpg,one\n")
  assert [r["text"] for r in run(tmp_path / "out", *flags)] == ["one"]
  (photos / "others.tsv").write_text("file_name\ttext\n2.jpg\ttwo\n")
  with pytest.raises(UserError, match="several tables: metadata.csv, others.tsv. Set --captions"):
    run(tmp_path / "out", *flags)
  chosen = run(tmp_path / "two", *flags, "--captions=others.tsv")
  assert [r["text"] for r in chosen] == ["two"]


def test_compressed_tars_and_braces_are_read(tmp_path):
  for i, (name, pack) in enumerate(
    (("0.tar", bytes), ("1.tar.gz", gzip.compress), ("2.tgz", gzip.compress))
  ):
    (tmp_path / name).write_bytes(pack(tar([(f"{i}.jpg", jpeg()), (f"{i}.txt", b"t%d" % i)])))
  assert [r["text"] for r in run(tmp_path / "a", f"--from={tmp_path}", "--format=webdataset")] == [
    "t0",
    "t1",
    "t2",
  ]
  braces = f"--from={tmp_path}/{{0.tar,2.tgz}}"
  assert [r["key"] for r in run(tmp_path / "b", braces, "--format=webdataset")] == ["0", "2"]


def test_captions_that_are_no_text_are_dropped_by_kind(photos, tmp_path):
  captions = [None, 7, 1.5, True, {"en": "x"}, [], [None], ["a", 3], "\ufeffb", "half \ud83d"]
  rows = [{"image": f"{i % 4}.jpg", "caption": c} for i, c in enumerate(captions)]
  for i in range(len(rows)):  # One image each, so that rows are not merged.
    (photos / f"x{i}.jpg").write_bytes(jpeg(i))
    rows[i]["image"] = f"x{i}.jpg"
  (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = run(tmp_path / "out", f"--from={photos}", "--format=folder")
  assert [r["text"] for r in source] == [["a"], "b"]
  assert source.manifest["dropped"] == {
    "empty text": 1,
    "lone surrogate": 1,
    "no text": 2,
    "text is a boolean": 1,
    "text is a dict": 1,
    "text is a number": 2,
  }
  english = run(tmp_path / "en", f"--from={photos}", "--format=folder", "--language=en")
  assert "x" in [r["text"] for r in english]


class Careless(CaptionTable):
  """A source that loses a row."""

  def outcomes(self, i):
    return [] if i == 1 else super().outcomes(i)


def test_a_reader_that_loses_an_item_is_stopped(photos, tmp_path, monkeypatch):
  (photos / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n2.jpg,c\n")
  monkeypatch.setattr(inputs, "CaptionTable", Careless)
  with pytest.raises(UncountedItems, match="Of the 3 rows of 0-2 of 3, 1 were neither read nor"):
    run(tmp_path / "out", f"--from={photos}/t.csv", "--format=table")
  ledger = Ledger("rows")
  ledger.find(2)
  ledger.drop("no image", 2)
  ledger.check("it")


def damaged_inputs(tmp_path, photos, name):
  """Yields (the job's arguments) for damaged copies of an input."""
  rows = [{"image": f"{i}.jpg", "caption": f'c, "{i}"'} for i in range(4)]
  table = pa.table({"image": [jpeg(i) for i in range(4)], "caption": [f"c {i}" for i in range(4)]})
  pq.write_table(table, tmp_path / "good.parquet")
  lines = ["image,caption", *(f'{r["image"]},"c, ""{i}"""' for i, r in enumerate(rows))]
  notes = json.dumps({"caption": "c", "url": "u"}).encode()
  good = {
    "t.jsonl": "\n".join(map(json.dumps, rows)).encode(),
    "t.json": json.dumps(rows).encode(),
    "t.csv": "\n".join(lines).encode(),
    "t.parquet": (tmp_path / "good.parquet").read_bytes(),
    "t.tar": tar(
      [(f"{i}.{e}", x) for i in range(3) for e, x in (("jpg", jpeg()), ("json", notes))]
    ),
    "1.txt": b"a caption \xc3\xa9",
    "1.json": notes,
  }[name]
  formats = {"tar": "webdataset", "parquet": "parquet", "txt": inputs.FILES}
  kind = inputs.FILES if name[0] == "1" else formats.get(name.partition(".")[2], "table")
  for damaged in damaged_bytes(good, 200):
    (photos / name).write_bytes(damaged)
    yield dict(
      where=str(photos if kind == inputs.FILES else photos / name),
      format=kind,
      on_error="skip",
      records_per_shard=3,
    )


@pytest.mark.parametrize(
  "name", ["t.jsonl", "t.json", "t.csv", "t.parquet", "t.tar", "1.txt", "1.json"]
)
def test_random_damage_is_one_message_or_counted(tmp_path, photos, name):
  written = refused = 0
  for arguments in damaged_inputs(tmp_path, photos, name):
    job = inputs.Job(**arguments)
    inputs.open_inputs.cache_clear()
    try:
      source = inputs.open_inputs(job)
      for piece in range(len(source)):
        ledger = Ledger(source.unit)
        for outcome in source.read(piece, ledger.find):
          if isinstance(outcome, inputs.Taken):
            ledger.take(outcome)
          elif isinstance(outcome, inputs.Dropped):
            ledger.drop(outcome.reason, outcome.items)
          else:
            ledger.leave(outcome)
        ledger.check(name)
        written += ledger.read > 0
    except UserError as error:
      refused += 1
      assert len(str(error)) < 2000
  assert written > 20 and refused < 200
  assert shards.hints(()) == []
