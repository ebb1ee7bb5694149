"""Tests of images with captions in files of the same name."""

import json
import os

import pytest

from clip_jax.data.outcomes import NotAskedFor
from clip_jax.data.sources.caption_files import CaptionFiles
from clip_jax.errors import UserError

FILES = {
  "a.jpg": b"A",
  "a.txt": b"\xef\xbb\xbfan ape\n",
  "deep/b.PNG": b"B",
  "deep/b.caption": b"a bee",
  "deep/b.txt": b"eine Biene",
  "deep/c.v2.webp": b"C",
  "deep/c.v2.json": json.dumps({"caption": ["a sea", "waves"], "title": "C", "url": "u"}).encode(),
  "deep/c.v2.jpg": b"another C",
  "LICENSE.txt": b"-",
  ".hidden.jpg": b"-",
  "model.bin": b"-",
}


@pytest.fixture
def folder(tmp_path):
  for name, content in FILES.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  return tmp_path


def test_every_image_has_its_caption_and_every_file_is_counted(folder):
  source = CaptionFiles(str(folder), image="webp;jpg;png", fields=("url",))
  assert list(source) == [
    {"image": b"A", "text": "an ape", "key": "a.jpg"},
    {"image": b"B", "text": "eine Biene", "key": "deep/b.PNG"},
    {"image": b"C", "text": ["a sea", "waves"], "key": "deep/c.v2.webp", "url": "u"},
  ]
  outcomes = [o for i in range(3) for o in source.outcomes(i)] + list(source.left_out)
  assert source.found == len(FILES) == sum(o.items for o in outcomes)
  left = {o.kind: o.items for o in outcomes if isinstance(o, NotAskedFor)}
  assert left == {".caption": 1, ".jpg": 1, ".txt": 1, "hidden": 1, ".bin": 1}


def test_the_text_can_be_another_file_or_an_entry_of_the_json(folder):
  source = CaptionFiles(str(folder), text="title;caption", check=False)
  assert [o.record.get("text") for i in range(3) for o in source.outcomes(i)[:1]] == [
    None,
    b"a bee",
    "C",
  ]


def test_images_without_captions_are_refused(folder):
  (folder / "d.jpg").write_bytes(b"D")
  with pytest.raises(UserError, match=r"1 of the 4 images .* no caption, for example d.jpg. Add d"):
    CaptionFiles(str(folder))
  assert len(CaptionFiles(str(folder), check=False)) == 4
  for name in ("a.txt", "deep/b.txt", "deep/b.caption", "deep/c.v2.json"):
    os.remove(folder / name)
  with pytest.raises(UserError, match="has no images with captions in files of the same name"):
    CaptionFiles(str(folder), check=False)
  with pytest.raises(UserError, match="There is no folder"):
    CaptionFiles(str(folder / "none"))
