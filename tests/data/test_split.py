"""Parts of a source are disjoint, cover it, and keep groups together."""

import io
import pickle

import numpy as np
from PIL import Image
import pytest

from clip_jax.data.decode import decode
from clip_jax.data.deduplicate import Deduplicate
from clip_jax.data.selection import base_indices_of
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.split import PARTS, Split
from clip_jax.data.subset import Subset
from clip_jax.errors import UserError


class Listed:
  """A source of the given records; None stands for one that cannot be read."""

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    if self.records[i] is None:
      raise OSError("unreadable")
    return self.records[i]


def copy_of(image, quality):
  """The same picture in another file."""
  out = io.BytesIO()
  Image.fromarray(decode(image)).save(out, "JPEG", quality=quality)
  return out.getvalue()


@pytest.fixture(scope="module")
def drawings():
  """Sixty drawings, of which the first twenty have two copies each, and two damaged images."""
  source = OpenClipart("val")
  images = [source[i]["image"] for i in range(0, 300, 5)]
  images += [copy_of(image, quality) for quality in (85, 95) for image in images[:20]]
  records = [{"image": image, "text": str(i), "article": i % 7} for i, image in enumerate(images)]
  return Listed([*records, None, {"image": b"damaged", "text": "x"}])


def parts_of(source, **options):
  return [Split(source, part, **options) for part in PARTS]


def all_indices(parts):
  return [base_indices_of(part, np.arange(len(part))) for part in parts]


@pytest.mark.parametrize("by", ["image hash", "image bytes", "article", None])
def test_parts_are_disjoint_and_cover_the_source(drawings, by):
  fractions = (0.6, 0.2, 0.2)
  parts = parts_of(drawings, by=by, fractions=fractions)
  found = all_indices(parts)
  assert sorted(np.concatenate(found).tolist()) == list(range(len(drawings)))
  largest = {None: 1, "article": 15}.get(by, 3)
  for indices, fraction in zip(found, fractions):
    assert abs(len(indices) - fraction * len(drawings)) <= largest
  sound = next(i for i, index in enumerate(found[0]) if index < 100)
  assert parts[0][sound] == drawings[int(found[0][sound])]
  copied = pickle.loads(pickle.dumps(parts[1]))
  assert np.array_equal(base_indices_of(copied, np.arange(len(copied))), found[1])
  with pytest.raises(IndexError):
    parts[1][len(parts[1])]


def test_near_duplicates_and_records_with_one_field_value_stay_together(drawings):
  parts = parts_of(drawings, by="image hash", fractions=(0.6, 0.2, 0.2))
  where = np.empty(len(drawings), int)
  for k, indices in enumerate(all_indices(parts)):
    where[indices] = k
  assert (where[:20] == where[60:80]).all() and (where[:20] == where[80:100]).all()
  assert len(set(where[:20])) == 3
  assert parts[0].ungrouped == 2 and parts[0].together >= 60
  assert "2 have none" in parts[0].describe()
  for indices in all_indices(parts_of(drawings, by="article", fractions=(0.6, 0.2, 0.2))):
    others = set(range(100)) - set(indices.tolist())
    assert not {i % 7 for i in indices if i < 100} & {i % 7 for i in others}


def validation_texts(source, seed):
  part = Split(source, "val", (0.6, 0.2, 0.2), seed=seed)
  return {part[i]["text"] for i in range(len(part))}


def test_the_parts_depend_on_the_seed_and_the_content_but_not_on_the_order(drawings):
  sound = Listed(drawings.records[:-2])
  reverse = Listed(sound.records[::-1])
  assert validation_texts(sound, 0) == validation_texts(reverse, 0) != validation_texts(sound, 1)
  one, two = (all_indices(parts_of(sound, by=None, seed=seed)) for seed in (0, 1))
  assert not np.array_equal(one[1], two[1])
  assert not set(one[1]) <= set(Subset(sound, len(one[1])).indices())


def test_mistakes_are_errors(drawings):
  with pytest.raises(UserError, match="add up to 0.9, not 1"):
    Split(drawings, fractions=(0.8, 0.1, 0.0))
  with pytest.raises(UserError, match="val part of 102 records in 102 groups is empty"):
    Split(drawings, "val", (1, 0, 0), by=None)
  with pytest.raises(UserError, match="has a field 'articles'.*'article'"):
    Split(drawings, by="articles")
  with pytest.raises(UserError, match="part is 'tests'"):
    Split(drawings, "tests")


def test_hashes_are_cached_and_a_damaged_cache_is_replaced(tmp_path, monkeypatch):
  from clip_jax.data import record_hashes as module

  monkeypatch.setattr(module, "caches", lambda: tmp_path)
  monkeypatch.setattr(module, "_MIN_CACHED", 10)
  monkeypatch.setattr(module, "_RECENT", {})
  source = OpenClipart("val")
  hashes, known = module.record_hashes(source, "image bytes")
  assert known.all() and len(np.unique(hashes, axis=0)) == len(source)
  (file,) = (tmp_path / "hashes").iterdir()
  calls, plain = [], module._exact
  monkeypatch.setattr(module, "_exact", lambda record: (calls.append(1), plain(record))[1])
  for content, read in ((file.read_bytes(), 64), (b"damaged", 64 + len(source))):
    file.write_bytes(content)
    module._RECENT.clear()
    calls.clear()
    np.testing.assert_array_equal(module.record_hashes(source, "image bytes")[0], hashes)
    assert len(calls) == read  # The probes of the key, and each record if nothing is cached.


def test_deduplicate_keeps_the_first_of_each_group_and_counts_the_others(drawings):
  near = Deduplicate(drawings)
  # A drawing may also resemble another one, so at least the copies are dropped.
  assert set(near.source_indices(np.arange(len(near)))) <= {*range(60), 100, 101}
  assert near.repeated == len(drawings) - len(near) >= 40 and near.unreadable == 2
  assert near[2] == drawings[int(near.source_indices(np.array([2]))[0])]
  assert f"keeps {len(near)} of 102 records by image hash" in near.describe()
  exact = Deduplicate(drawings, by="image bytes")
  assert len(exact) == 102 and exact.repeated == 0
  twice = Listed(drawings.records[:10] * 2)
  assert len(Deduplicate(twice, by="image bytes")) == 10


def test_deduplicate_drops_images_of_the_test_set(drawings):
  held_out = Listed(drawings.records[60:70])  # Copies of the first ten.
  kept = Deduplicate(drawings, against=held_out)
  indices = set(kept.source_indices(np.arange(len(kept))).tolist())
  assert not indices & {*range(10), *range(60, 70), *range(80, 90)}
  assert kept.held_out >= 30 and len(kept) + kept.held_out + kept.repeated == len(drawings)
  with pytest.raises(UserError, match="would drop all 10 records"):
    Deduplicate(Listed(drawings.records[:10]), against=drawings)
