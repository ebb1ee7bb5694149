"""Tests of mixtures: proportions of every prefix, and order and coverage of the records."""

from collections import Counter
import pickle

import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.data.sources.mixture import Mixture
from clip_jax.data.sources.shapes import Shapes
from clip_jax.errors import UserError


class Numbers:
  def __init__(self, name, size):
    self.name, self.size = name, size

  def __len__(self):
    return self.size

  def __getitem__(self, i):
    assert 0 <= i < self.size
    return {"image": b"", "text": f"{self.name} {i}"}


def mixture(lengths, weights, size=None):
  names = "abcdefghij"[: len(lengths)]
  sources = {name: Numbers(name, length) for name, length in zip(names, lengths)}
  return Mixture(sources, dict(zip(names, weights)), size)


@pytest.mark.parametrize(
  "weights",
  [
    (0.7, 0.3),
    (1, 1),
    (1, 2, 4),
    (0.5, 0.3, 0.2),
    (0.9, 0.05, 0.05),
    (5, 4, 3, 2, 1, 1),
    (np.pi, np.e, 1),
    (0.999, 0.001),
  ],
)
def test_every_prefix_follows_the_weights(weights):
  source = mixture((50,) * len(weights), weights, 20_000)
  names = [source.locate(i)[0] for i in range(len(source))]
  shares = np.array(weights) / sum(weights)
  taken = np.cumsum(np.array(names)[:, None] == np.array(source._names), 0)  # [n, sources]
  assert abs(taken - np.arange(1, 20_001)[:, None] * shares).max() <= 1.01
  assert source.counts == dict(Counter(names))


def test_records_of_a_source_come_in_order_and_equally_often():
  source = mixture((10, 7, 100), (0.5, 0.3, 0.2), 100)
  records = list(source)
  assert all(r["text"].startswith(r["origin"] + " ") for r in records)
  visits = {
    name: [int(r["text"].split()[1]) for r in records if r["origin"] == name] for name in "abc"
  }
  assert visits["a"] == list(range(10)) * 5
  assert visits["b"][:28] == list(range(7)) * 4 and visits["b"][28:] == [0, 3]
  assert visits["c"] == list(range(0, 100, 5))
  assert source.visits == {"a": 5, "b": 30 / 7, "c": 0.2}
  assert "b: 30.00%, 30 of 100; each of its 7 records 4.29 times" in str(source)


def test_the_default_size_is_the_smallest_that_uses_every_record():
  for lengths, weights in (((10, 7, 100), (0.5, 0.3, 0.2)), ((3, 3), (1, 1)), ((1, 9), (0.9, 0.1))):
    source = mixture(lengths, weights)
    seen = Counter(source.locate(i) for i in range(len(source)))
    assert set(seen) == {(n, i) for n, k in zip("abc", lengths) for i in range(k)}
    for name, length in zip("abc", lengths):
      counts = [seen[name, i] for i in range(length)]
      assert max(counts) - min(counts) <= 1
    assert min(mixture(lengths, weights, len(source) - 1).visits.values()) < 1


def test_the_order_of_the_names_does_not_matter():
  one = Mixture({"a": Numbers("a", 5), "b": Numbers("b", 9)}, {"a": 2, "b": 1})
  other = Mixture({"b": Numbers("b", 9), "a": Numbers("a", 5)}, {"b": 0.5, "a": 1})
  assert list(one) == list(other) == list(pickle.loads(pickle.dumps(one)))


def test_a_mixture_can_be_built_from_a_config():
  spec = call(
    Mixture,
    sources={"few": call(Shapes, size=3), "many": call(Shapes, size=30, seed=1)},
    weights={"few": 0.1, "many": 0.9},
  )
  source = build(spec)
  assert len(source) >= 33 and source.counts["many"] >= 30
  assert {r["origin"] for r in source} == {"few", "many"}


def test_billions_of_records_are_indexed_quickly():
  source = mixture((10**9, 10**10), (0.25, 0.75), 10**11)
  assert source.locate(10**11 - 1)[0] in "ab"
  assert source.counts == {"a": 25 * 10**9, "b": 75 * 10**9}


@pytest.mark.parametrize(
  "lengths, weights, size, message",
  [
    ((), (), None, "The mixture has sources none but weights for none"),
    ((3, 3), (1,), None, "sources a, b but weights for a. Give each source one weight"),
    ((3, 0), (1, 1), None, "Source 'b' of the mixture has no records"),
    ((3, 3), (1, 0), None, "weights.b is 0; Mixture expects a number above 0"),
    ((3, 3), (1, float("nan")), None, "weights.b is nan; Mixture expects a finite number"),
    ((3, 3), (1, 1e-7), None, "weight of 'b' is 1e-07 of the total, less than 1 in 65,536"),
    ((3, 3), (1, 1), 0, "size is 0; Mixture"),
  ],
)
def test_an_invalid_argument_is_rejected(lengths, weights, size, message):
  with pytest.raises(UserError, match=message):
    mixture(lengths, weights, size)


def test_an_index_out_of_range_raises_index_error():
  source = mixture((3, 3), (1, 1))
  for i in (-1, len(source)):
    with pytest.raises(IndexError, match=f"record {i} of 6"):
      source[i]
