"""prepare --format=iconify: shards, splits by group, held-out sets and concepts."""

import json

import numpy as np
import pytest

from clip_jax.data.icons.held_out_sets import KINDS, held_out_sets, kind_of
from clip_jax.data.ingest.icon_index import common_names
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.icon_records import IconRecords
from clip_jax.data.sources.iconify import Iconify
from clip_jax.errors import UserError
from clip_jax.prepare import main
from tests.tiny_icons import tiny_sets, write_sets


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  package, out = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("out")
  write_sets(package, *tiny_sets())
  main([f"--from={package}", "--format=iconify", f"--out={out}", "--max_side=48"])
  return package, out


def everything(source):
  return {record["key"]: record for record in (source[i] for i in range(len(source)))}


def test_records_are_those_of_the_source(folders):
  package, out = folders
  source = Iconify(package, size=48, coloured=0.5)
  prepared = everything(IconRecords(out, "all", coloured=0.0))
  assert len(prepared) == len(source) - 2
  for i in range(len(source)):
    if source._icons[i].name in ("torn", "nothing"):
      continue
    record = Iconify(package, size=48)[i]
    for field in ("text", "names", "style", "set", "licence", "author", "palette"):
      assert prepared[record["key"]][field] == record[field]


def test_the_manifest_names_what_was_dropped_and_who_drew_the_rest(folders):
  manifest = json.loads((folders[1] / "manifest.json").read_text())
  assert manifest["dropped"] == {"blank drawing": 1, "broken drawing": 1}
  assert manifest["items"]["not_asked_for"] == {"licence GPL-3.0": 1}
  assert manifest["dropped_keys"] == {
    "blank drawing": ["one:nothing"],
    "broken drawing": ["one:torn"],
  }
  assert [(one["prefix"], one["licence"], one["author"]) for one in manifest["sets"]] == [
    (name, "MIT", f"{name} authors") for name in ("charm", "one", "two")
  ]


def test_groups_hold_the_same_drawing_and_are_in_one_split(folders):
  prepared = everything(IconRecords(folders[1], "all"))
  for one, two in (("one:trash", "two:bin"), ("one:heart", "two:heart")):
    assert prepared[one]["drawing"] == prepared[two]["drawing"]
  assert prepared["one:arrow-left"]["drawing"] != prepared["one:arrow-right"]["drawing"]
  assert set(prepared["one:trash"]["concept"]) == {"trash", "bin", "delete"}
  splits = {key: split for split in ("train", "val", "test") for key in _keys(folders[1], split)}
  for key in ("trash", "heart", "arrow-left"):
    other = f"two:{ {'trash': 'bin'}.get(key, key) }"
    assert splits[f"one:{key}"] == splits[other]
  assert not any(key.startswith("charm") for key in splits)


def _keys(out, split):
  try:
    return list(everything(IconRecords(out, split)))
  except UserError:  # A split that no icon of so few is in.
    return []


def test_held_out_sets_are_a_split_and_known_drawings_are_marked(folders):
  held_out = everything(IconRecords(folders[1], "line"))
  assert set(held_out) == {"charm:star", "charm:red-square", "charm:half"}
  in_train = "one:star" in _keys(folders[1], "train")
  assert held_out["charm:star"]["seen"] == in_train
  assert not held_out["charm:half"]["seen"]
  unseen = everything(IconRecords(folders[1], "held_out", seen=False))
  assert {"charm:red-square", "charm:half"} <= set(unseen)


def test_concepts_are_the_names_that_most_sets_share(folders):
  names = [("a", "star"), ("b", "star"), ("b", "star"), ("b", "moon"), ("c", "moon"), ("c", "ab")]
  known = [{"set": prefix, "name": name} for prefix, name in names]
  assert common_names(known) == ("moon", "star")
  source = IconRecords(folders[1], "line", named=True)
  assert source.classes[0] == "star"
  assert [source[i]["key"] for i in range(len(source))] == ["charm:star"]
  assert source[0]["label"] == [0]


def test_an_index_of_other_shards_is_refused(folders, tmp_path):
  package, out = folders
  other = tmp_path / "other"
  main([f"--from={package}", "--format=iconify", f"--out={other}", "--licences=all"])
  (other / "icons.npz").write_bytes((out / "icons.npz").read_bytes())
  with pytest.raises(UserError, match="does not belong"):
    IconRecords(other)
  (other / "icons.npz").write_bytes(b"")
  with pytest.raises(UserError, match="cannot be read"):
    IconRecords(other)


def test_held_out_sets_cover_all_kinds_once():
  sets = held_out_sets()
  assert tuple(sets) == KINDS
  listed = [prefix for kind in sets.values() for prefix in kind]
  assert len(listed) == len(set(listed)) == 25
  assert kind_of("twemoji") == "emoji" and kind_of("mdi") is None


def test_drawings_are_stored_as_grey_or_rgba_pngs(folders):
  records = ArrayRecord(folders[1])
  sizes = {record["key"]: record["image"] for record in (records[i] for i in range(len(records)))}
  assert all(image[:4] == b"\x89PNG" for image in sizes.values())
  assert np.frombuffer(sizes["one:star"][25:26], np.uint8)[0] == 0  # Colour type: grey.
  assert np.frombuffer(sizes["charm:red-square"][25:26], np.uint8)[0] == 6  # RGBA.


def test_categorised_icons_have_their_first_category(folders):
  source = IconRecords(folders[1], "all", categorised=("arrows", "shapes"))
  assert [(source[i]["key"], source[i]["category"]) for i in range(len(source))] == [
    ("two:star", "shapes")
  ]
  with pytest.raises(UserError, match="no icons"):
    IconRecords(folders[1], "all", categorised=("food",))


def test_stored_pixels_give_the_same_icons(folders, tmp_path):
  out = tmp_path / "pixels"
  main([f"--from={folders[0]}", "--format=iconify", f"--out={out}", "--max_side=48", "--pixels"])
  assert (out / "icons.json").read_text() == (folders[1] / "icons.json").read_text()
  for coloured in (0.0, 1.0):
    expected = everything(IconRecords(folders[1], "all", coloured=coloured))
    found = everything(IconRecords(out, "all", coloured=coloured))
    assert any(record["palette"] for record in found.values())
    for key, record in expected.items():
      np.testing.assert_array_equal(found[key].pop("image"), record.pop("image"))
      assert found[key] == record
