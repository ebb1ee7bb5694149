"""Tests of Parquet files: order of rows, row group cache, threads, column types, errors."""

import json
import pickle
import re
import threading

import pyarrow as pa
from pyarrow import parquet as pq
import pytest

from clip_jax.data.outcomes import Dropped
from clip_jax.data.sources.parquet import Parquet
from clip_jax.errors import UserError


def rows(n, start=0):
  return [
    {"image": bytes([i]) * 50, "caption": f"é {i}", "label": i % 3, "url": f"u{i}"}
    for i in range(start, start + n)
  ]


def expected(i):
  return {"image": bytes([i]) * 50, "text": f"é {i}"}


@pytest.fixture
def folder(tmp_path):
  for k, (start, count) in enumerate(((0, 25), (25, 3), (28, 12))):
    pq.write_table(
      pa.Table.from_pylist(rows(count, start)), tmp_path / f"{k}.parquet", row_group_size=10
    )
  (tmp_path / "readme.md").write_text("not a table")
  return tmp_path


def test_rows_of_all_files_come_in_order(folder):
  source = Parquet(str(folder))
  assert len(source) == 40 and len(source.files) == 3
  assert [source[i] for i in range(40)] == [expected(i) for i in range(40)] == list(source)
  assert len(Parquet(f"{folder}/[12].parquet")) == 15
  assert Parquet(f"file://{folder}/1.parquet")[2] == expected(27)


@pytest.fixture
def read(monkeypatch):
  """List of the row groups read so far, as (file, row group)."""
  reads, real = [], Parquet._read
  monkeypatch.setattr(
    Parquet, "_read", lambda self, *place: reads.append(place) or real(self, *place)
  )
  return reads


def test_sequential_access_reads_each_row_group_once_and_the_cache_stays_small(folder, read):
  source = Parquet(str(folder), groups=2)
  for i in range(40):
    assert source[i] == expected(i)
    assert len(source._cache) <= 2
    assert all(f.result().num_rows <= 10 for f in source._cache.values())
  assert len(read) == 6 == len(set(read))
  source[39], source[29], source[39], source[0], source[39]
  assert len(read) == 7  # The least recently used row group is evicted.


def test_threads_share_the_read_of_a_row_group(folder, read):
  source, wrong = Parquet(str(folder), groups=6), []

  def reads(start):
    wrong.extend(i for k in range(80) if source[i := (start + 7 * k) % 40] != expected(i))

  threads = [threading.Thread(target=reads, args=(k,)) for k in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong and len(read) == 6


def test_a_failed_read_is_retried(folder, monkeypatch):
  source = Parquet(str(folder))
  with monkeypatch.context() as patch:
    patch.setattr(Parquet, "_read", lambda *_: (_ for _ in ()).throw(OSError("the net is down")))
    with pytest.raises(OSError, match="the net is down"):
      source[3]
  assert source[3] == expected(3)


def test_the_source_is_picklable(folder):
  source = Parquet(str(folder))
  source[3]
  assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_hugging_face_image_structs_and_class_names_are_read(tmp_path):
  table = pa.Table.from_pylist(
    [
      {"image": {"bytes": b"abc", "path": "x.jpg"}, "label": 1},
      {"image": {"bytes": None, "path": "y.jpg"}, "label": 0},
    ]
  )
  note = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
  table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
  pq.write_table(table, tmp_path / "a.parquet")
  source = Parquet(str(tmp_path), text=None, label="label")
  assert source[0] == {"image": b"abc", "label": 1} and source.classes == ("cat", "dog")
  with pytest.raises(Dropped, match="no image bytes, only a path"):
    source[1]


def test_texts_may_be_lists_bytes_nulls_or_several_columns(tmp_path):
  table = pa.table({"image": [b"x", b"y"], "one": [b"\xc3\xa9", None], "many": [["a", "b"], []]})
  pq.write_table(table, tmp_path / "a.parquet")
  assert [r["text"] for r in Parquet(str(tmp_path), text="one")] == ["é", ""]
  assert [r["text"] for r in Parquet(str(tmp_path), text="many")] == [["a", "b"], []]
  both = Parquet(str(tmp_path), text=("one", "many"))
  assert [r["text"] for r in both] == [["é", "a", "b"], [""]]


def test_further_columns_are_included_under_their_names(folder):
  assert Parquet(str(folder), fields=("url",), label="label")[7] == {
    **expected(7),
    "label": 1,
    "url": "u7",
  }
  assert Parquet(str(folder), fields=None)[7] == {**expected(7), "url": "u7"}


def test_an_empty_file_has_no_records(tmp_path):
  table = pa.Table.from_pylist(rows(1)).slice(0, 0)
  pq.write_table(table, tmp_path / "a.parquet")
  assert len(Parquet(str(tmp_path))) == 0


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(text="text"), r"0.parquet has no column 'text'; it has image \(binary\), caption \(str"),
    (dict(image="imag"), "no column 'imag'.*Did you mean 'image'"),
    (dict(fields=("licence",)), "no column 'licence'"),
    (dict(image="url"), "Column 'url' of .* has paths of images. Set image_root=DIR"),
    (dict(image="label"), "Column 'label' of .* has type int64; expected bytes, a struct"),
    (dict(text="label"), "Column 'label' of .* has type int64; expected strings or lists of"),
    (dict(label="url"), "Column 'url' of .* has type string; expected integers"),
    (dict(groups=0), "groups is 0; Parquet expects an integer of at least 1"),
  ],
)
def test_an_invalid_argument_is_rejected(folder, arguments, message):
  with pytest.raises(UserError, match=message):
    Parquet(str(folder), **arguments)


def test_a_column_missing_from_one_file_is_reported(folder):
  pq.write_table(pa.table({"image": [b"x"]}), folder / "9.parquet")
  with pytest.raises(UserError, match="9.parquet has no column 'caption'; it has image"):
    Parquet(str(folder))


@pytest.mark.parametrize("keep", [0, 30, -10])
def test_a_truncated_file_is_reported(folder, keep):
  path = folder / "1.parquet"
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(UserError, match=re.escape(str(path)) + " is truncated or not a Parquet file"):
    Parquet(str(folder))


def test_an_index_out_of_range_raises_index_error(folder):
  for i in (-1, 40):
    with pytest.raises(IndexError, match=f"record {i} of 40"):
      Parquet(str(folder))[i]


def as_type(values, kind):
  return (
    pa.array(values, kind)
    if not pa.types.is_dictionary(kind)
    else pa.array(values, kind.value_type).dictionary_encode()
  )


@pytest.mark.parametrize(
  "kind",
  [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.binary(),
    pa.binary_view(),
  ],
  ids=str,
)
def test_every_type_of_text_is_read(tmp_path, kind):
  texts = ["é", "b", None]
  if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
    texts = [text and text.encode() for text in texts]
  images = as_type([b"x", b"yy", b"z"], pa.large_binary())
  pq.write_table(
    pa.table({"image": images, "caption": as_type(texts, kind)}), tmp_path / "a.parquet"
  )
  source = Parquet(str(tmp_path))
  assert [record["text"] for record in source] == ["é", "b", ""]
  [taken] = source.outcomes(2)
  assert taken.record["text"] is None


@pytest.mark.parametrize(
  "kind",
  [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(3),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.list_(pa.uint8()),
    pa.list_(pa.uint8(), 3),
    pa.struct({"bytes": pa.large_binary(), "path": pa.string()}),
  ],
  ids=str,
)
def test_every_type_of_image_is_read(tmp_path, kind):
  images = [b"abc", b"def"]
  if pa.types.is_struct(kind):
    images = [{"bytes": image, "path": None} for image in images]
  elif not any(f(kind) for f in (pa.types.is_dictionary, pa.types.is_fixed_size_binary)):
    images = [list(image) if hasattr(kind, "value_type") else image for image in images]
  table = pa.table({"jpg": as_type(images, kind), "text": [["a"], ["b", "c"]]})
  pq.write_table(table, tmp_path / "a.parquet")
  assert list(Parquet(str(tmp_path))) == [
    {"image": b"abc", "text": ["a"]},
    {"image": b"def", "text": ["b", "c"]},
  ]


def test_fixed_size_lists_of_texts_and_files_of_nulls_are_read(tmp_path):
  pairs = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2))
  pq.write_table(pa.table({"image": [b"x", b"y"], "caption": pairs}), tmp_path / "a.parquet")
  assert [r["text"] for r in Parquet(str(tmp_path))] == [["a", "b"], ["c", "d"]]
  nulls = pa.table({"image": pa.nulls(2), "caption": pa.nulls(2)})
  pq.write_table(nulls, tmp_path / "b.parquet")
  source = Parquet(str(tmp_path))
  assert len(source) == 4
  with pytest.raises(Dropped, match="no image"):
    source[3]


def test_images_can_be_files_in_a_folder(tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos/1.jpg").write_bytes(b"J")
  (tmp_path / "private").write_bytes(b"-")
  rows = pa.table({"file_name": ["1.jpg", "../private", "2.jpg"], "caption": ["a", "b", "c"]})
  pq.write_table(rows, tmp_path / "a.parquet")
  with pytest.raises(UserError, match=r"'file_name' of .* has paths of images. Set image_root=DIR"):
    Parquet(f"{tmp_path}/a.parquet")
  source = Parquet(f"{tmp_path}/a.parquet", image_root=tmp_path / "photos")
  assert source[0] == {"image": b"J", "text": "a"}
  with pytest.raises(OSError, match="'../private' is outside"):
    source[1]
  with pytest.raises(FileNotFoundError):
    source[2]


def test_texts_by_language_and_repeated_columns_are_named(tmp_path):
  images = pa.array([b"x"])
  by_language = pa.table({"image": images, "caption": [{"en": "dog", "de": "Hund"}]})
  pq.write_table(by_language, tmp_path / "a.parquet")
  with pytest.raises(UserError, match="has texts by name: en, de. Choose .*language=NAME"):
    Parquet(f"{tmp_path}/a.parquet")
  assert Parquet(f"{tmp_path}/a.parquet", language="de")[0]["text"] == "Hund"
  twice = pa.Table.from_arrays(
    [images, pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"]
  )
  pq.write_table(twice, tmp_path / "b.parquet")
  with pytest.raises(UserError, match="b.parquet has several columns named text"):
    Parquet(f"{tmp_path}/b.parquet")
