"""Tests of image folders: caption tables, class folders, and errors for missing images."""

import csv
import json
import pickle

import pytest

from clip_jax.data.sources.folder import Folder
from clip_jax.errors import UserError

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
  for name in ("dog/2.jpg", "dog/1.PNG", "cat/3.jpg", "cat/notes.txt", ".trash/4.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(name.encode())
  source = Folder(str(tmp_path), captions=None)
  assert source.classes == ("cat", "dog")
  assert list(source) == [
    {"image": key.encode(), "key": key, "label": label}
    for key, label in (("cat/3.jpg", 0), ("dog/1.PNG", 1), ("dog/2.jpg", 1))
  ]


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
    UserError, match="line 1 has no 'captoin', only image, caption, who. Did you mean 'caption'"
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
    ([ROWS[0], "{"], "captions.jsonl, line 2: .*Expected one JSON object per line"),
    ([ROWS[0], "7"], "captions.jsonl, line 2: 7 is not an object"),
    ([{"image": "a.jpg", "caption": None}], "line 1: caption is None; expected a string"),
    ([""], "captions.jsonl has no rows"),
  ):
    with pytest.raises(UserError, match=message):
      Folder(table(folder, rows))
  (folder / "x.csv").write_bytes(b"image,caption\na.jpg,\xff\n")
  with pytest.raises(UserError, match="x.csv is not UTF-8: .*Convert it to UTF-8"):
    Folder(str(folder), "x.csv")
  (folder / "deep" / "inner").mkdir()
  with pytest.raises(UserError, match="has no images in subfolders; expected files CLASS/NAME"):
    Folder(f"{folder}/deep", captions=None)


def test_an_index_out_of_range_raises_index_error(folder):
  source = Folder(table(folder, ROWS))
  for i in (-1, 3):
    with pytest.raises(IndexError, match=f"record {i} of 3"):
      source[i]
