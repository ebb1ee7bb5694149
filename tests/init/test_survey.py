"""What is at a path, from names and headers, and what to do if it is not clear."""

import json

import pytest

from clip_jax.errors import UserError
from clip_jax.init.survey import survey


def test_tables_in_a_file_or_a_folder(tmp_path):
  (tmp_path / "pairs.csv").write_text("\ufefffilename,title,author\na.jpg,a dog,x\n")
  expected = (str(tmp_path / "pairs.csv"), "table", "--image=filename", "--text=title")
  for where in (tmp_path / "pairs.csv", tmp_path):
    found = survey(str(where))
    assert found.arguments == expected and found.folder == tmp_path
  assert survey(str(tmp_path), text="author").arguments[-1] == "--text=author"
  (tmp_path / "other.tsv").write_text("image\tcaption\n")
  with pytest.raises(UserError, match="several tables: other.tsv, pairs.csv. Name one"):
    survey(str(tmp_path))
  (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": "a"}) + "\n")
  assert survey(str(tmp_path)).arguments[0] == str(tmp_path / "captions.jsonl")


def test_archives_parquet_caption_files_and_prepared_records(tmp_path):
  for folder, names in (
    ("tars", ("0.tar", "1.tar")),
    ("files", ("b/1.jpg", "b/1.txt", "2.png", "2.json", ".hidden.txt")),
    ("prepared", ("records-00000-of-00001.array_record", "manifest.json")),
    ("classes", ("dog/1.jpg", "cat/2.jpg")),
    ("other", ("notes.docx",)),
    ("empty", ()),
  ):
    (tmp_path / folder).mkdir()
    for name in names:
      (tmp_path / folder / name).parent.mkdir(exist_ok=True)
      (tmp_path / folder / name).touch()
  (tmp_path / "parquet").mkdir()
  (tmp_path / "parquet/0.parquet").touch()
  at = lambda name: survey(str(tmp_path / name))
  assert at("tars").arguments == (str(tmp_path / "tars"), "webdataset")
  assert at("tars/*.tar").arguments[1] == "webdataset" and "2 WebDataset tars" in at("tars").kind
  assert at("files").arguments == (str(tmp_path / "files"), "folder", "--caption_files")
  assert at("files").kind == "2 images, 2 of them with a caption file"
  assert at("parquet").arguments == (str(tmp_path / "parquet"), "parquet")
  assert survey("gs://bucket/cc3m-*.tar").arguments == ("gs://bucket/cc3m-*.tar", "webdataset")
  assert survey("cc3m/{000..331}.tar", text="alt").arguments[1:] == ("webdataset", "--text=alt")
  assert at("prepared").arguments is None
  for name, message in (
    ("classes", "2 images but no captions.*--classification=DIR"),
    ("other", "no data that is known here"),
    ("empty", "no data that is known here"),
    ("other/notes.docx", "is notes.docx. Expected"),
    ("nothing", "There is nothing at"),
  ):
    with pytest.raises(UserError, match=message):
      at(name)


def test_unclear_columns_are_named(tmp_path):
  table = tmp_path / "t.csv"
  for header, message in (
    ("a,b", "has no column with an image, only a, b. .*--image=NAME"),
    ("image,b", "has no column with a text, only image, b. .*--text=NAME"),
    ("url,caption", "clip_jax does not download"),
  ):
    table.write_text(header + "\nx,y\n")
    with pytest.raises(UserError, match=message):
      survey(str(table))
