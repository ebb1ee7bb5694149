"""Tests of image folders: caption tables, class folders, and errors for missing images."""

import csv
import json
import os
import pickle

import pytest

from clip_jax.data import untrusted
from clip_jax.data.folder_walk import BROKEN, OUTSIDE, SPECIAL
from clip_jax.data.sources.folder import Folder
from clip_jax.errors import UserError
from mutations import damaged_bytes, damaged_values

IMAGES = {"a.jpg": b"A", "deep/b.png": b"B", "deep/c c.webp": b"C"}


@pytest.fixture
def folder(tmp_path):
  for name, content in IMAGES.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  return tmp_path


def table(folder, rows, name="captions.jsonl"):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  (folder / name).write_text("\n".join(lines) + "\n")
  return str(folder)


ROWS = [
  {"image": "deep/b.png", "caption": "a bee", "who": "x"},
  {"image": "a.jpg", "caption": ["an ape", "an ant"], "who": "y"},
  {"image": "./deep/c c.webp", "caption": "a sea", "who": "z"},
]


def test_records_follow_the_order_of_the_table(folder):
  source = Folder(table(folder, ROWS), fields=("who",))
  assert list(source) == [
    {"image": b"B", "text": "a bee", "key": "deep/b.png", "who": "x"},
    {"image": b"A", "text": ["an ape", "an ant"], "key": "a.jpg", "who": "y"},
    {"image": b"C", "text": "a sea", "key": "deep/c c.webp", "who": "z"},
  ]
  assert list(pickle.loads(pickle.dumps(source))) == list(source)


@pytest.mark.parametrize("name, delimiter", [("t.csv", ","), ("t.tsv", "\t")])
def test_csv_tables_are_read_and_rows_with_the_same_image_are_merged(folder, name, delimiter):
  with open(folder / name, "w", encoding="utf-8-sig", newline="") as f:
    csv.writer(f, delimiter=delimiter).writerows(
      [
        ("file_name", "text"),
        ("a.jpg", 'one, "quoted"\nline'),
        ("deep/b.png", "bee"),
        ("a.jpg", "two"),
        ("./a.jpg", "three"),
      ]
    )
  source = Folder(str(folder), name, image="file_name", text="text")
  assert [(r["key"], r["text"]) for r in source] == [
    ("a.jpg", ['one, "quoted"\nline', "two", "three"]),
    ("deep/b.png", "bee"),
  ]


def test_subfolders_are_classes_if_there_is_no_table(tmp_path):
  for name in (
    "dog/2.jpg",
    "dog/1.PNG",
    "cat/wild/3.jpg",
    "cat/notes.txt",
    ".trash/4.jpg",
    "5.jpg",
  ):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_bytes(name.encode())
  source = Folder(str(tmp_path), captions=None)
  assert source.classes == ("cat", "dog")
  assert list(source) == [
    {"image": key.encode(), "key": key, "label": label}
    for key, label in (("cat/wild/3.jpg", 0), ("dog/1.PNG", 1), ("dog/2.jpg", 1))
  ]
  # The hidden folder counts as one.
  assert source.found == 6 and source.items == [1, 1, 1]
  assert {left.kind: left.items for left in source.left_out} == {
    "hidden": 1,
    ".txt": 1,
    "images outside the class folders": 1,
  }


def test_missing_images_are_counted_and_the_first_five_are_listed(folder):
  rows = ROWS + [{"image": f"gone/{i}.jpg", "caption": "?"} for i in range(7)]
  with pytest.raises(
    UserError,
    match="7 of the 10 images listed in captions.jsonl are missing in "
    r".*: gone/0.jpg, gone/1.jpg, gone/2.jpg, gone/3.jpg, gone/4.jpg, \.\.\.",
  ):
    Folder(table(folder, rows))
  source = Folder(str(folder), check=False)
  assert source[0]["image"] == b"B"
  with pytest.raises(FileNotFoundError, match="gone/0.jpg"):
    source[3]


@pytest.mark.parametrize("path", ["../x.jpg", "deep/../../x.jpg", "/etc/x", "", ".", "..", None])
def test_a_path_outside_the_folder_is_rejected(folder, path):
  with pytest.raises(UserError, match="line 1: .* is not a path inside the folder"):
    Folder(table(folder, [{"image": path, "caption": "x"}]), check=False)


def test_wrong_names_and_malformed_rows_are_reported(folder):
  table(folder, ROWS)
  with pytest.raises(
    UserError, match="jsonl has no 'captoin', only image, caption, who. Did you mean 'caption'"
  ):
    Folder(str(folder), text="captoin")
  with pytest.raises(UserError, match="no 'xyz', only .*text=NAME to the source or --text=NAME"):
    Folder(str(folder), text="xyz")
  with pytest.raises(
    UserError,
    match="There is no table .*c.csv; the folder has captions.jsonl. "
    "Set captions to the name of a table, or to None",
  ):
    Folder(str(folder), "c.csv")
  with pytest.raises(UserError, match="There is no folder .*none"):
    Folder(f"{folder}/none")
  for rows, message in (
    ([ROWS[0], "{"], r"captions.jsonl, line 2: not JSON .*on_error=.skip"),
    ([ROWS[0], "7"], r"captions.jsonl, line 2: not an object \(it is 7\)"),
    ([{"image": "a.jpg", "caption": None}], "line 1: caption is None; expected a string"),
    ([""], "captions.jsonl has no rows"),
  ):
    with pytest.raises(UserError, match=message):
      Folder(table(folder, rows))
  (folder / "x.csv").write_bytes(b"image,caption\na.jpg,\xff\n")
  with pytest.raises(UserError, match=r"x.csv, line 2: invalid UTF-8 \(convert"):
    Folder(str(folder), "x.csv")
  (folder / "deep" / "inner").mkdir()
  with pytest.raises(UserError, match="has no images in subfolders; expected files CLASS/NAME"):
    Folder(f"{folder}/deep", captions=None)


def test_an_index_out_of_range_raises_index_error(folder):
  source = Folder(table(folder, ROWS))
  for i in (-1, 3):
    with pytest.raises(IndexError, match=f"record {i} of 3"):
      source[i]


@pytest.fixture
def linked(tmp_path):
  """Class folders and a table in `tmp_path`/root; private files are outside it."""
  root, private = tmp_path / "root", tmp_path / "private"
  for name in ("root/cat/1.jpg", "root/dog/2.jpg", "private/3.jpg", "private/fox/4.jpg"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(name.encode())
  (root / "cat/inside.jpg").symlink_to("../dog/2.jpg")
  (root / "cat/outside.jpg").symlink_to(private / "3.jpg")
  (root / "fox").symlink_to(private / "fox")
  (root / "dog/broken.jpg").symlink_to("nowhere")
  os.mkfifo(root / "dog/fifo.jpg")
  return root


def test_links_out_of_the_folder_and_fifos_are_skipped_and_counted(linked, caplog):
  source = Folder(str(linked), captions=None)
  assert source.classes == ("cat", "dog")
  assert [record["key"] for record in source] == ["cat/1.jpg", "cat/inside.jpg", "dog/2.jpg"]
  assert source.skipped == {OUTSIDE: 2, BROKEN: 1, SPECIAL: 1}
  assert "skipped 1 FIFOs, devices or sockets, 1 broken links, 2 links" in caplog.text
  followed = Folder(str(linked), captions=None, follow_links=True)
  assert followed.classes == ("cat", "dog", "fox")
  assert followed[2]["image"] == b"private/3.jpg" and len(followed) == 5


@pytest.mark.parametrize("name", ["cat/outside.jpg", "fox/4.jpg", "dog/fifo.jpg", "dog/broken.jpg"])
def test_a_table_cannot_reach_files_through_links_or_wait_for_a_fifo(linked, name):
  rows = [{"image": "cat/1.jpg", "caption": "a cat"}, {"image": name, "caption": "?"}]
  with pytest.raises(UserError, match="1 of the 2 images.*skipped 1 .*follow_links=True"):
    Folder(table(linked, rows))
  unchecked = Folder(str(linked), check=False)
  assert unchecked[0]["image"] == b"root/cat/1.jpg"
  with pytest.raises(OSError):
    unchecked[1]
  if name in ("cat/outside.jpg", "fox/4.jpg"):
    followed = Folder(str(linked), follow_links=True)
    assert followed[1]["image"].startswith(b"private/")
    assert pickle.loads(pickle.dumps(followed))[1] == followed[1]


def test_names_in_messages_are_escaped(folder):
  (folder / "\x1b[31m.csv").touch()
  with pytest.raises(UserError) as raised:
    Folder(str(folder))
  assert "\\x1b[31m.csv" in str(raised.value)
  with pytest.raises(UserError) as raised:
    Folder(table(folder, [{"image": "\x1b[2J.jpg", "caption": "x"}]))
  assert "\x1b" not in str(raised.value) and "\\x1b[2J.jpg" in str(raised.value)


@pytest.mark.parametrize("name", ["captions.jsonl", "t.csv", "t.tsv"])
def test_random_damage_to_a_table_gives_records_or_one_message(folder, name):
  if name == "captions.jsonl":
    table(folder, ROWS)
    good = (folder / name).read_bytes()
    lines = good.splitlines()
    damage = [
      b"\n".join([*lines, json.dumps(row).encode()]) for row in damaged_values(ROWS[1], 100)
    ] + list(damaged_bytes(good, 100))
  else:
    delimiter = b"," if name == "t.csv" else b"\t"
    rows = [(b"image", b"caption"), (b"a.jpg", b'"an ""ape"""'), (b"deep/b.png", b"bee")]
    damage = list(damaged_bytes(b"\n".join(map(delimiter.join, rows)), 200))
  refused = 0
  for damaged in damage:
    (folder / name).write_bytes(damaged)
    try:
      source = Folder(str(folder), name)
      assert all(isinstance(record["image"], bytes) for record in source)
    except UserError as error:
      refused += 1
      assert len(str(error)) < 3000
  assert 50 < refused < 200


def test_a_line_without_an_end_is_not_read_into_memory(folder, monkeypatch):
  monkeypatch.setattr(untrusted, "MAX_LINE", 1000)
  table(folder, [ROWS[0], {"image": "a.jpg", "caption": "x" * 1000}])
  with pytest.raises(UserError, match="line 2 has more than 1,000 characters"):
    Folder(str(folder))
