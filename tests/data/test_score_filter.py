"""ScoreFilter selects exactly the records with the highest scores, above and below subsets."""

import json
import os
from pathlib import Path
import pickle
import re

import numpy as np
import pytest

from clip_jax.data import Examples, ScoreFilter, Subset, read_scores, write_scores
from clip_jax.data.score_file import fingerprint
from clip_jax.data.score_filter import _BLOCK, _score_of, _selection_bound, _sortable
from clip_jax.data.selection import base_indices_of, base_source
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.shapes import Shapes
from clip_jax.errors import UserError


class Numbers:
  """A source of records such as {"text": "7", "n": 7, "similarity": score}."""

  def __init__(self, scores, tag=""):
    self.scores, self.tag = list(scores), tag

  def __len__(self):
    return len(self.scores)

  def __getitem__(self, i):
    if self.scores[i] == "damaged":
      raise OSError("cut off")
    return {"image": b"", "text": f"{i}{self.tag}", "n": i, "similarity": self.scores[i]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path


def best(scores, k):
  """Ascending indices of the k highest scores, by sorting; ties go to earlier records."""
  order = sorted(
    (i for i in range(len(scores)) if not np.isnan(scores[i])),
    key=lambda i: (-np.float32(scores[i]), i),
  )
  return sorted(order[:k])


def drawn(n, seed=0, ties=True):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=n).astype(np.float32)
  return np.round(x, 1) if ties else x


@pytest.mark.parametrize("n", [1, 5, 511, 512, 513, 5000])
@pytest.mark.parametrize("share", [1, 20, 40, 99.5, 100])
@pytest.mark.parametrize("ties", [True, False])
def test_top_percentages_keep_exactly_the_best(tmp_path, n, share, ties):
  scores = drawn(n, ties=ties)
  source = Numbers(scores)
  write_scores(tmp_path / "s.npz", scores, source)
  k = round(share / 100 * n)
  if not k:
    with pytest.raises(UserError, match=f"is 0 records, but must be between 1 and {n:,}"):
      ScoreFilter(source, str(tmp_path / "s.npz"), keep=f"top {share}%")
    return
  chosen = ScoreFilter(source, str(tmp_path / "s.npz"), keep=f"top {share}%")
  expected = best(scores, k)
  assert len(chosen) == chosen.kept == k
  assert chosen.indices().tolist() == expected
  assert chosen.threshold == pytest.approx(float(scores[expected].min()))
  assert chosen.tied == int(
    (scores == scores[expected].min()).sum() - (scores[expected] == scores[expected].min()).sum()
  )
  assert [chosen[i]["n"] for i in range(0, k, 1 + k // 20)] == expected[:: 1 + k // 20]


@pytest.mark.parametrize("keep", ["top 40%", "top 2k", "top 2_000"])
def test_keep_accepts_percentages_and_counts(keep):
  scores = drawn(5000)
  assert ScoreFilter(Numbers(scores), "similarity", keep=keep).indices().tolist() == best(
    scores, 2000
  )


def test_above_is_a_strict_bound():
  scores = [0.1, 0.3, 0.30001, -1.0, 0.9, float("nan"), float("inf")]
  chosen = ScoreFilter(Numbers(scores), "similarity", above=0.3)
  assert chosen.indices().tolist() == [2, 4, 6] and chosen.threshold == 0.3
  assert (chosen.tied, chosen.unscored) == (0, 1)
  assert ScoreFilter(Numbers([-2.0, -1.0, 0.0, -0.0]), "similarity", above=-1.5).kept == 3
  assert ScoreFilter(Numbers([-1.0, 0.0, -0.0, 1e-30]), "similarity", above=0).kept == 1


def test_records_without_a_score_are_never_kept():
  scores = [None, 0.5, float("nan"), "damaged", -0.5, 0.1]
  chosen = ScoreFilter(Numbers(scores), "similarity", keep="top 100%")
  assert chosen.indices().tolist() == [1, 4, 5] and chosen.unscored == 3
  assert "keeps 3 of 6 (50.0%)" in chosen.describe() and "3 have no score" in chosen.describe()


def test_ordered_integers_have_the_order_of_the_scores():
  scores = np.array(
    [-np.inf, -3e38, -1, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1, 3e38, np.inf, np.nan], np.float32
  )
  order = _sortable(scores).astype(np.int64)
  assert (np.diff(order[:-1]) >= 0).all() and order[-1] == 0
  assert [i for i in range(10) if order[i] == order[i + 1]] == [4]
  for x, o in zip(scores[:-1], order):
    assert np.float32(_score_of(int(o))) == x


def test_the_bound_over_several_chunks_matches_sorting():
  order = _sortable(drawn(3000, seed=3))
  pieces = lambda: ((i, order[i : i + 700]) for i in range(0, 3000, 700))
  for wanted in (1, 2, 17, 1500, 2999, 3000):
    bound, spare = _selection_bound(pieces, wanted)
    assert bound == np.sort(order)[-wanted]
    assert spare == wanted - int((order > bound).sum())


def test_the_chunk_size_does_not_change_the_selection(monkeypatch):
  scores = drawn(3000)
  whole = ScoreFilter(Numbers(scores), "similarity", keep="top 30%")
  monkeypatch.setattr("clip_jax.data.score_filter._CHUNK", 1024)
  pieces = ScoreFilter(Numbers(scores), "similarity", keep="top 30%")
  assert pieces.indices().tolist() == whole.indices().tolist() == best(scores, 900)
  assert (pieces.tied, pieces.threshold) == (whole.tied, whole.threshold)


def test_blocks_without_kept_records_are_skipped():
  scores = np.zeros(5 * _BLOCK)
  wanted = [3, _BLOCK - 1, 3 * _BLOCK, 3 * _BLOCK + 7, 5 * _BLOCK - 1]
  scores[wanted] = 1
  chosen = ScoreFilter(Numbers(scores), "similarity", above=0.5)
  assert chosen.indices().tolist() == wanted
  assert chosen.indices(1, 3).tolist() == wanted[1:3] and chosen.indices(3, 3).tolist() == []
  assert chosen.source_indices(np.array([4, 0, 0, 2])).tolist() == [wanted[i] for i in (4, 0, 0, 2)]


def test_score_filter_nests_with_subset_in_both_orders(tmp_path):
  scores = drawn(1000)
  source = Numbers(scores)
  write_scores(tmp_path / "s.npz", scores, source)
  top = ScoreFilter(source, str(tmp_path / "s.npz"), keep="top 30%")
  some = Subset(top, 50, seed=1)
  assert {some[i]["n"] for i in range(50)} <= set(best(scores, 300))
  assert base_indices_of(some, np.arange(50)).tolist() == [some[i]["n"] for i in range(50)]

  subset = Subset(source, 200, seed=2)
  chosen = ScoreFilter(subset, str(tmp_path / "s.npz"), keep="top 10%")
  own = [scores[i] for i in subset.indices()]
  assert chosen.indices().tolist() == best(own, 20)
  assert [chosen[i]["n"] for i in range(20)] == subset.indices()[best(own, 20)].tolist()
  assert base_indices_of(chosen, np.arange(20)).tolist() == [chosen[i]["n"] for i in range(20)]
  assert base_source(chosen) is source and base_indices_of(source, np.arange(3)).tolist() == [
    0,
    1,
    2,
  ]
  passing = int((scores >= np.float32(chosen.threshold)).sum())
  assert chosen.describe().startswith(
    "ScoreFilter: top 10% by s.npz keeps 20 of 200 (10.0%), threshold "
  )
  assert f"; {passing} of all 1,000 scored records are at or above it" in chosen.describe()
  high = ScoreFilter(subset, str(tmp_path / "s.npz"), above=1.0)
  assert f"; {(scores > 1).sum()} of all 1,000 scored records are above it" in high.describe()


def test_scores_can_belong_to_the_subset_itself(tmp_path):
  source = Subset(Numbers(drawn(100)), 30)
  scores = drawn(30, seed=5)
  write_scores(tmp_path / "s.npz", scores, source)
  assert ScoreFilter(source, str(tmp_path / "s.npz"), keep="top 50%").indices().tolist() == best(
    scores, 15
  )


def test_example_indices_map_back_to_the_root_source():
  source = Numbers(drawn(300))
  chosen = Subset(ScoreFilter(source, "similarity", keep="top 40%"), 60)
  examples = Examples(chosen, lambda record, rng: {"n": np.int64(record["n"])})
  got = [examples[i] for i in range(60)]
  index = np.array([example["index"] for example in got])
  assert sorted(index) == list(range(60))
  assert base_indices_of(chosen, index).tolist() == [int(example["n"]) for example in got]


def test_selections_pickle_compactly(tmp_path):
  source = Shapes(1000)
  write_scores(tmp_path / "s.npz", drawn(1000), source)
  chosen = ScoreFilter(source, str(tmp_path / "s.npz"), keep="top 10%")
  again = pickle.loads(pickle.dumps(chosen))
  assert again.indices().tolist() == chosen.indices().tolist()
  assert again.describe() == chosen.describe() and len(pickle.dumps(chosen)) < 3000


def test_describe_reports_ties():
  chosen = ScoreFilter(Numbers([1, 1, 1, 0]), "similarity", keep="top 50%")
  assert chosen.indices().tolist() == [0, 1] and chosen.threshold == 1
  assert chosen.describe() == (
    "ScoreFilter: top 50% by similarity keeps 2 of 4 (50.0%), threshold 1; "
    "dropped 1 tied at the threshold"
  )


def test_scores_read_from_large_sources_are_cached(monkeypatch, home):
  monkeypatch.setattr("clip_jax.data.score_filter._MIN_CACHED", 100)
  scores = drawn(150)
  first = ScoreFilter(Numbers(scores), "similarity", keep="top 40%")
  read = []

  class Recording(Numbers):
    def __getitem__(self, i):
      read.append(i)
      return super().__getitem__(i)

  again = ScoreFilter(Recording(scores), "similarity", keep="top 40%")
  assert again.indices().tolist() == first.indices().tolist() == best(scores, 60)
  assert len(set(read)) < 150 and os.listdir(home / "cache" / "clip_jax")
  other = np.where(np.arange(150) == 0, 9, scores)
  assert ScoreFilter(Numbers(other), "similarity", keep="top 40%").indices().tolist() == best(
    other, 60
  )


def test_an_unwritable_cache_folder_is_ignored(monkeypatch, home):
  monkeypatch.setattr("clip_jax.data.score_filter._MIN_CACHED", 100)
  (home / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
  assert ScoreFilter(Numbers(drawn(150)), "similarity", keep="top 40%").kept == 60


def test_score_files_round_trip_and_are_readable_with_numpy(tmp_path):
  scores = drawn(100)
  write_scores(
    tmp_path / "s.npz", (scores[i : i + 30] for i in range(0, 100, 30)), Numbers(scores), model="m"
  )
  got, header = read_scores(tmp_path / "s.npz")
  assert isinstance(got, np.memmap) and got.dtype == np.float32
  np.testing.assert_array_equal(got, scores)
  assert header["records"] == 100 and header["source"] == "Numbers" and header["model"] == "m"
  with np.load(tmp_path / "s.npz") as file:
    np.testing.assert_array_equal(file["score"], scores)
    assert json.loads(str(file["header"])) == header
  assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_wrong_number_of_scores_raises_and_writes_nothing(tmp_path):
  with pytest.raises(UserError, match="99 scores for 100 records of Shapes"):
    write_scores(tmp_path / "s.npz", np.zeros(99), Shapes(100))
  assert not list(tmp_path.iterdir())


def test_fingerprints_distinguish_sources_by_content():
  clean = OpenClipart()
  prints = [
    fingerprint(s)
    for s in (
      clean,
      OpenClipart(swapped=0.4),
      OpenClipart("val"),
      OpenClipart(caption="title"),
      Subset(clean, 4000),
      Subset(clean, "100%"),
      Shapes(100),
      Shapes(100, seed=1),
      Shapes(101),
    )
  ]
  assert len(set(prints)) == len(prints)
  assert fingerprint(OpenClipart()) == prints[0]
  assert fingerprint(Numbers([1, "damaged", 3])) != fingerprint(Numbers([1, 2, 3]))
  joined, split = Numbers([1]), Numbers([1])
  joined.__class__ = type("Joined", (Numbers,), {"__getitem__": lambda s, i: {"text": ["ab", "c"]}})
  split.__class__ = type("Split", (Numbers,), {"__getitem__": lambda s, i: {"text": ["a", "bc"]}})
  assert fingerprint(joined) != fingerprint(split)


class Wrong:
  def __len__(self):
    return 3

  def __getitem__(self, i):
    raise UserError("a wrong setting")


def test_configuration_errors_are_not_treated_as_damage():
  with pytest.raises(UserError, match="a wrong setting"):
    fingerprint(Wrong())

  class Later(Numbers):
    def __getitem__(self, i):
      return super().__getitem__(i) if i < 1 else Wrong()[i]

  with pytest.raises(UserError, match="a wrong setting"):
    ScoreFilter(Later([1, 2, 3]), "similarity", above=0)


def scored(tmp_path):
  write_scores(tmp_path / "s.npz", drawn(100), Shapes(100))
  return str(tmp_path / "s.npz")


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda p: ScoreFilter(Shapes(100), p), "keep=None and above=None; give exactly one"),
    (
      lambda p: ScoreFilter(Shapes(100), p, keep="top 4%", above=0.3),
      "above=0.3; give exactly one",
    ),
    (lambda p: ScoreFilter(Shapes(100), p, keep="best 4%"), "keep='best 4%' is not \"top 40%\" or"),
    (
      lambda p: ScoreFilter(Shapes(100), p, keep="top some"),
      "keep='top some' is not \"top 40%\" or",
    ),
    (lambda p: ScoreFilter(Shapes(100), p, keep="top 101%"), "is 101 records, but must be between"),
    (
      lambda p: ScoreFilter(Shapes(100), p, keep="top 0"),
      "is 0 records, but must be between 1 and",
    ),
    (
      lambda p: ScoreFilter(Shapes(100), p, above=50),
      "keep none of 100 records: the highest score is",
    ),
    (
      lambda p: ScoreFilter(Shapes(101), p, keep="top 4%"),
      "s.npz holds the scores of another source: Shapes of 100 records, fingerprint [0-9a-f]{16}. "
      "This source is Shapes of 101, fingerprint",
    ),
    (lambda p: ScoreFilter(Shapes(100, seed=1), p, keep="top 4%"), "the scores of another source"),
    (
      lambda p: ScoreFilter(Subset(Shapes(99), 9), p, keep="top 40%"),
      "Subset of 9 over Shapes of 99",
    ),
    (lambda p: ScoreFilter(Shapes(100), p + "x", above=0), "No score file at .*s.npzx"),
    (
      lambda p: ScoreFilter(Shapes(100), "similarity", above=0),
      "'similarity' is neither a file nor a field of the records of Shapes; numeric fields: 'lab",
    ),
    (lambda p: ScoreFilter(Numbers([1, 2]), "x", above=0), "numeric fields: 'n', 'similarity'"),
    (lambda p: ScoreFilter(Numbers([1, 2]), "text", above=0), "in record 0, '0', is not a number"),
    (
      lambda p: ScoreFilter(Numbers([None, None]), "similarity", above=0),
      r"keep none of 2 records: none of them has a score \(2 are NaN\)",
    ),
    (lambda p: ScoreFilter(Numbers([None, None]), "similarity", keep="top 50%"), "has a score"),
  ],
)
def test_invalid_arguments_raise(tmp_path, make, message):
  with pytest.raises(UserError, match=message):
    make(scored(tmp_path))


@pytest.mark.parametrize("i", [4, -1])
def test_indices_out_of_range_raise(tmp_path, i):
  with pytest.raises(IndexError, match=f"record {i} of 4"):
    ScoreFilter(Shapes(100), scored(tmp_path), keep="top 4%")[i]


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_truncated_score_files_raise(tmp_path, keep):
  path = scored(tmp_path)
  file = Path(path)
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(UserError, match=re.escape(path) + " is damaged or not a score file"):
    read_scores(path)


def test_npz_files_with_other_contents_raise(tmp_path):
  for arrays in (
    dict(x=np.zeros(3)),
    dict(score=np.zeros(3), header=np.array('{"records": 3}')),
    dict(score=np.zeros(3, np.float32), header=np.array('{"records": 4}')),
  ):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match="not a score file"):
      read_scores(tmp_path / "s.npz")
