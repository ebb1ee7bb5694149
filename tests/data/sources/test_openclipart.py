"""Tests of the Open Clip Art source: completeness, readable images, text fields, swapped texts."""

import pickle

import numpy as np
import pytest

from clip_jax.data.decode import decode
from clip_jax.data.sources import openclipart
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError


def test_every_record_has_an_image_a_text_and_a_unique_key():
  keys = []
  for split, count in (("train", 4562), ("val", 372), ("test", 459)):
    source = OpenClipart(split)
    assert len(source) == count
    for record in source:
      assert record["text"] and record["image"][8:12] == b"WEBP" and not record["swapped"]
      assert source.classes[record["label"]] == record["subset"]
      keys.append(record["key"])
  assert len(set(keys)) == 5393


def test_images_are_small_and_readable():
  source = OpenClipart("test")
  for i in range(0, len(source), 10):
    image = decode(source[i]["image"])
    assert image.ndim == 3 and max(image.shape[:2]) <= 96


@pytest.mark.parametrize("field", openclipart.FIELDS)
def test_every_field_falls_back_to_the_caption(field):
  captions, source = OpenClipart("val"), OpenClipart("val", field)
  records = captions.records
  assert all(
    source[i]["text"] == (records[i][field] or captions[i]["text"]) for i in range(len(source))
  )


def test_several_fields_give_a_list_with_one_text_per_field():
  source = OpenClipart("val", ("title", "keywords", "description"))
  assert all(len(record["text"]) == 3 and all(record["text"]) for record in source)
  assert isinstance(OpenClipart("val", ("title",))[0]["text"], list)


def test_swapped_texts_come_from_other_records_and_are_nested():
  right, some, more = (OpenClipart(swapped=share) for share in (0, 0.2, 0.4))
  drawn = {0.2: [some[i] for i in range(0, 4562, 7)], 0.4: [more[i] for i in range(0, 4562, 7)]}
  swapped = {share: np.array([r["swapped"] for r in drawn[share]]) for share in drawn}
  assert abs(swapped[0.2].mean() - 0.2) < 0.05 and abs(swapped[0.4].mean() - 0.4) < 0.05
  assert (swapped[0.4] >= swapped[0.2]).all()
  for i, record in zip(range(0, 4562, 7), drawn[0.4]):
    assert record["image"] == right[i]["image"]
    if not record["swapped"]:
      assert record["text"] == right[i]["text"]
  other = [
    r["text"] != right[i]["text"] for i, r in zip(range(0, 4562, 7), drawn[0.4]) if r["swapped"]
  ]
  assert np.mean(other) > 0.99


def test_the_source_is_picklable():
  source = OpenClipart("val", swapped=0.0)
  assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_the_data_files_are_small_and_include_the_licence():
  files = [p for p in openclipart._FOLDER.parent.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) < 13e6
  assert {"LICENSE.txt", "README.md"} <= {p.name for p in openclipart._FOLDER.iterdir()}


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(split="tests"), "split is 'tests'; OpenClipart expects 'train', 'val' or 'test'"),
    (dict(caption="alt"), "caption is 'alt'; OpenClipart expects 'caption', 'caption_long'"),
    (
      dict(caption=("title", "alt", "x")),
      r"caption is \('title', 'alt', 'x'\); OpenClipart expects",
    ),
    (dict(caption=()), r"caption is \(\); OpenClipart expects .* a tuple of 1 or more"),
    (dict(swapped=40), "swapped is 40; OpenClipart expects a number from 0 to 1"),
    (dict(split="test", swapped=0.4), "swapped=0.4 works with the train split only"),
  ],
)
def test_an_invalid_argument_is_rejected(arguments, message):
  with pytest.raises(UserError, match=message):
    OpenClipart(**arguments)
