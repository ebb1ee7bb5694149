"""Iconify lists what is visible and permitted, under all its names, and draws it."""

import json
import pickle

import numpy as np
import pytest

from clip_jax.data.icons.icon_drawing import INKS, decode_drawing
from clip_jax.data.sources.iconify import Iconify
from clip_jax.errors import UserError
from tests.tiny_icons import HALF, QUARTER, icon_set, tiny_sets, write_sets


def records(source):
  return {record["key"]: record for record in (source[i] for i in range(len(source)))}


def test_fields_of_a_record(tmp_path):
  path = write_sets(tmp_path, *tiny_sets())
  source = Iconify(path, size=24, caption="name")
  keys = [source._icons[i].name for i in range(len(source))]
  i = keys.index("bin")
  record = source[i]
  assert decode_drawing(record.pop("image")).shape == (24, 24)
  assert record == {
    "text": "bin",
    "key": "two:bin",
    "name": "bin",
    "names": ["bin", "delete"],
    "style": [],
    "categories": [],
    "set": "two",
    "licence": "MIT",
    "author": "two authors",
    "palette": False,
  }
  assert Iconify(path, caption="names")[i]["text"] == ["bin", "delete"]
  assert {"bin", "delete", "bin, delete icon"} <= set(Iconify(path)[i]["text"])
  assert "secret" not in keys and "half" in keys


def test_licences(tmp_path):
  path = write_sets(tmp_path, *tiny_sets())
  permissive = Iconify(path)
  assert permissive.skipped == {"GPL-3.0": 1}
  assert "1 under GPL-3.0 left out" in permissive.describe()
  assert len(Iconify(path, licences="all")) == len(permissive) + 1
  assert len(Iconify(path, licences=("GPL-3.0",))) == 1
  with pytest.raises(UserError, match="'ISC'.*'MIT'"):
    Iconify(path, licences="ISC")
  with pytest.raises(UserError, match="npm pack"):
    Iconify(tmp_path / "missing")
  assert [one["icons"] for one in permissive.attribution()] == [3, 7, 5]


def test_aliases_that_turn_a_drawing_are_drawings(tmp_path):
  aliases = {
    "right": {"parent": "corner", "hFlip": True},
    "back": {"parent": "right", "hFlip": True},  # Mirrored twice: another name of the corner.
    "down": {"parent": "right", "rotate": 1},
    "lost": {"parent": "nowhere"},
    "loop": {"parent": "loop"},
  }
  found = records(
    Iconify(write_sets(tmp_path, icon_set("a", {"corner": QUARTER}, aliases=aliases)), size=24)
  )
  assert set(found) == {"a:corner", "a:right", "a:down"}
  assert found["a:corner"]["names"] == ["corner", "back"]
  corner = decode_drawing(found["a:corner"]["image"])
  mirrored = corner[:, ::-1]
  np.testing.assert_array_equal(decode_drawing(found["a:right"]["image"]), mirrored)
  np.testing.assert_array_equal(decode_drawing(found["a:down"]["image"]), np.rot90(mirrored, -1))


def test_packages_of_single_sets(tmp_path):
  for name in ("b", "a"):
    content = icon_set(name, {"half": HALF})
    info = content.pop("info")
    (tmp_path / name).mkdir()
    (tmp_path / name / "icons.json").write_text(json.dumps(content))
    (tmp_path / name / "info.json").write_text(json.dumps(info))
  assert list(records(Iconify(tmp_path))) == ["a:half", "b:half"]
  assert list(records(Iconify(tmp_path / "a"))) == ["a:half"]


def test_colours_depend_on_the_seed_only_and_are_nested(tmp_path):
  path = write_sets(tmp_path, icon_set("a", {f"half-{i}": HALF for i in range(40)}))
  every, some = Iconify(path, coloured=1.0, size=8), Iconify(path, coloured=0.5, size=8)
  coloured = [i for i in range(40) if isinstance(some[i]["image"], np.ndarray)]
  assert 8 < len(coloured) < 32
  for i in coloured:
    image, text = every[i]["image"], every[i]["text"]
    np.testing.assert_array_equal(image, some[i]["image"])
    named = next(name for name in INKS if any(name in one for one in text))
    assert np.abs(image[0, 0].astype(int) - INKS[named]).max() <= 15
  again = pickle.loads(pickle.dumps(every))
  np.testing.assert_array_equal(again[3]["image"], every[3]["image"])
  other = Iconify(path, coloured=1.0, size=8, seed=1)
  assert any((other[i]["image"] != every[i]["image"]).any() for i in range(40))


@pytest.mark.parametrize(
  "content", ["[]", "{", '{"prefix": "a"}', '{"prefix": "a", "icons": {"b": 3}}']
)
def test_damaged_files(tmp_path, content):
  (tmp_path / "json").mkdir()
  (tmp_path / "json" / "a.json").write_text(content)
  with pytest.raises(UserError, match=r"a\.json|set a"):
    Iconify(tmp_path)
