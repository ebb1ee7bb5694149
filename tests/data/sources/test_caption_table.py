"""Tests of caption tables: where images are found, columns, rows that cannot be used, counts."""

import json
import os
import pickle

import pytest

from clip_jax.data.sources.caption_table import CaptionTable
from clip_jax.errors import UserError


@pytest.fixture
def images(tmp_path):
  for i in range(3):
    path = tmp_path / f"photos/deep/{i}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image %d" % i)
  (tmp_path / "lists").mkdir()
  return tmp_path


def write(path, *lines):
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def texts(source):
  return {record["image"].decode()[-1]: record["text"] for record in source}


@pytest.mark.parametrize("form", ["next to it", "root", "absolute", "absolute in root", "above"])
def test_images_are_relative_to_the_table_or_the_root_or_absolute(images, form):
  folder = "photos" if form == "next to it" else "lists"
  path = {"absolute": f"{images}/photos/deep/", "absolute in root": f"{images}/photos/deep/"}
  path = path.get(form, "../photos/deep/" if form == "above" else "deep/")
  rows = (f"{path}{i}.jpg,caption {i}" for i in range(3))
  root = images / "photos" if "root" in form else None
  source = CaptionTable(write(images / folder / "t.csv", "filepath,title", *rows), image_root=root)
  assert texts(source) == {str(i): f"caption {i}" for i in range(3)}
  assert texts(pickle.loads(pickle.dumps(source))) == texts(source)


def test_an_image_root_confines_every_path(images):
  os.symlink(images / "photos/deep/1.jpg", images / "lists/link.jpg")
  rows = ["0.jpg", f"{images}/photos/deep/0.jpg", "../photos/deep/0.jpg", "/etc/passwd"]
  for row in rows[1:]:
    table = write(images / "lists/t.csv", "image,caption", f"{row},x")
    with pytest.raises(UserError, match="line 2: .* is not a path inside the folder .*lists"):
      CaptionTable(table, image_root=images / "lists")
  table = write(images / "lists/t.csv", "image,caption", "link.jpg,x")
  with pytest.raises(UserError, match="1 of the 1 images .*skipped 1 links that leave"):
    CaptionTable(table, image_root=images / "lists")
  assert len(CaptionTable(table)) == 1  # The user's own table is trusted.


def test_missing_images_are_looked_for_nearby(images):
  table = write(
    images / "lists/t.csv", "image,caption", "photos/deep/0.jpg,x", "photos/deep/1.jpg,y"
  )
  with pytest.raises(UserError, match=f"2 of the 2 images .*They are in {images}: set image_root="):
    CaptionTable(table)
  assert len(CaptionTable(table, image_root=images)) == 2


@pytest.mark.parametrize(
  "header",
  [
    "image,caption",
    "filepath,title",
    "file_name,text",
    "filename,TEXT",
    "image_path,Caption",
    "key,Image,text",
    "title,path",
  ],
)
def test_usual_names_of_columns_are_recognised(images, header):
  named = {"image": "deep/0.jpg", "caption": "a dog", "key": "7"}
  kind = lambda name: (
    "key"
    if name == "key"
    else "caption"
    if name.lower() in ("caption", "title", "text")
    else "image"
  )
  row = ",".join(named[kind(name)] for name in header.split(","))
  source = CaptionTable(write(images / "photos/t.csv", header, row))
  assert source[0] == {"image": b"image 0", "text": "a dog", "key": "deep/0.jpg"}
  assert source.image_name in source.describe() and source.text_name in source.describe()


@pytest.mark.parametrize(
  "rows, message",
  [
    (("url,caption", "http://x/1.jpg,a"), "column 'url' holds addresses .* does not download"),
    (("image,caption", "http://x/1.jpg,a"), "line 2: 'http://x/1.jpg' is an address"),
    (("image,words", "a,b"), "has no column with a text, only image, words. .*text=NAME"),
    (("picture,caption", "a,b"), "has no column with an image, only picture, caption"),
    (("image,caption", ",b"), "line 2: '' is not a path"),
    (("image,caption", "deep/0.jpg,"), "line 2: caption is ''; expected a string"),
    (("image,caption", 'deep/0.jpg,"a', "deep/1.jpg,b"), r"line 2: unclosed quote .*on_error=skip"),
    (("image,caption", "deep/0.jpg,a", "deep/1.jpg,b,c"), "line 3: too many fields .it has 3, but"),
    (("image,caption",), "has no rows"),
  ],
)
def test_rows_that_cannot_be_used_are_named(images, rows, message):
  with pytest.raises(UserError, match=message):
    CaptionTable(write(images / "photos/t.csv", *rows))


def test_such_rows_can_be_left_out_and_are_counted(images):
  rows = [
    {"image": "deep/0.jpg", "caption": "one", "url": "u"},
    {"image": "deep/0.jpg", "caption": ["two", "three"]},
    {"image": "deep/1.jpg", "caption": None},
    {"image": "deep/1.jpg", "caption": float("nan")},
    {"image": "deep/1.jpg", "caption": {"en": "x"}},
    {"image": "https://x/1.jpg", "caption": "x"},
    {"image": None, "caption": "x"},
    {"caption": "x"},
    {"image": "gone.jpg", "caption": "x"},
    {"image": "deep/2.jpg", "caption": "last", "url": ""},
  ]
  lines = [*map(json.dumps, rows[:3]), "{", "7", *map(json.dumps, rows[3:])]
  table = write(images / "photos/t.jsonl", *lines)
  source = CaptionTable(table, on_error="skip", fields=None)
  assert [(r["key"], r["text"], r.get("url")) for r in source] == [
    ("deep/0.jpg", ["one", "two", "three"], "u"),
    ("deep/2.jpg", "last", None),
  ]
  reasons = [left.reason for left in source.left_out]
  assert {reason: reasons.count(reason) for reason in reasons} == {
    "no text": 1,
    "not JSON": 1,
    "not an object": 1,
    "text is NaN": 1,
    "text is a dict": 1,
    "image is a URL": 1,
    "no image path": 1,
    "field missing": 1,
    "no image": 1,
  }
  assert source.found == 12 == sum(source.items) + sum(left.items for left in source.left_out)


def test_a_language_can_be_chosen(images):
  rows = [{"image": f"deep/{i}.jpg", "caption": {"en": f"dog {i}", "de": "Hund"}} for i in range(2)]
  (images / "photos/t.json").write_text(json.dumps(rows))
  source = CaptionTable(str(images / "photos/t.json"), language="en")
  assert texts(source) == {"0": "dog 0", "1": "dog 1"}
