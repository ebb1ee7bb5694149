"""Permutations are bijections of any size and look random; subsets are nested."""

import itertools
import pickle

import numpy as np
import pytest

from clip_jax.data import Subset
from clip_jax.data.permutation import feistel_permute, splitmix64
from clip_jax.data.sources.shapes import Shapes
from clip_jax.errors import UserError


def order(n, seed=0):
  return feistel_permute(np.arange(n, dtype=np.uint64), n, seed=seed)


@pytest.mark.parametrize("n", [*range(1, 70), 255, 1000, 65_535, 65_536, 65_537, 262_145])
def test_feistel_permute_is_a_bijection(n):
  assert np.array_equal(np.sort(order(n)), np.arange(n))


def test_feistel_permute_agrees_for_ints_and_arrays():
  for n in (1, 2, 10, 1000, 65_537):
    some = range(0, n, 1 + n // 50)
    assert [feistel_permute(i, n, seed=7) for i in some] == order(n, seed=7)[list(some)].tolist()


def test_splitmix64_gives_the_published_outputs():
  """Compares with the published first outputs for seed 1234567."""
  state, seen = 1234567, []
  for _ in range(3):
    state = state + 0x9E3779B97F4A7C15 & 2**64 - 1
    seen.append(splitmix64(state))
  assert seen == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_feistel_permute_is_uncorrelated_with_the_order():
  for n in (65_537, 1_000_003):
    x = order(n, seed=3).astype(float)
    for lag in (1, 2, 256, int(n**0.5)):
      assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / n**0.5
    assert abs(np.corrcoef(x, np.arange(n))[0, 1]) < 5 / n**0.5
    assert abs(np.corrcoef(x, order(n, seed=4))[0, 1]) < 5 / n**0.5


def test_feistel_permute_is_uniform_over_billions():
  n = 3_400_000_000
  x = feistel_permute(np.arange(10**9, 10**9 + 200_000, dtype=np.uint64), n, seed=1)
  counts = np.histogram(x, 20, (0, n))[0]
  assert len(set(x.tolist())) == 200_000 and abs(counts - 10_000).max() < 500


def test_subsets_are_nested():
  source = Shapes(1000)
  sets = [set(Subset(source, size).indices(0, size).tolist()) for size in (10, 100, 500, 1000)]
  for smaller, larger in itertools.pairwise(sets):
    assert smaller < larger
  assert sets[-1] == set(range(1000))


def test_a_subset_returns_the_records_at_its_indices():
  source = Shapes(1000)
  subset = pickle.loads(pickle.dumps(Subset(source, 50, seed=5)))
  assert len(subset) == 50
  indices = subset.indices(10, 40)
  assert indices.dtype == np.int64 and indices.tolist() == subset.indices()[10:40].tolist()
  for i, index in zip(range(10, 40), indices):
    assert subset[i]["text"] == source[int(index)]["text"]
  assert set(subset.indices().tolist()) != set(Subset(source, 50, seed=6).indices().tolist())


@pytest.mark.parametrize(
  "size, count",
  [
    (1, 1),
    (10_000_000, 10_000_000),
    ("10M", 10_000_000),
    ("2.5M", 2_500_000),
    ("500k", 500_000),
    ("0.01B", 10_000_000),
    ("10%", 2_000_000),
    ("0.5%", 100_000),
    ("100%", 20_000_000),
    ("10_000", 10_000),
    ("2.2M", 2_200_000),
  ],
)
def test_sizes_accept_units_and_percentages(size, count):
  assert len(Subset(Shapes(20_000_000), size)) == count


@pytest.mark.parametrize(
  "size",
  [
    "ten",
    "10 %%",
    "M",
    "1.2.3k",
    "",
    "-5",
    "10m",
    "9" * 400,
    10**400,
    0,
    -1,
    "0%",
    None,
    1.5,
    True,
  ],
)
def test_unparsable_sizes_raise(size):
  with pytest.raises(UserError, match="Subset expects a number of records, such as"):
    Subset(Shapes(100), size)


@pytest.mark.parametrize("size", [101, "1k", "101%", "0.1%"])
def test_sizes_outside_the_source_raise(size):
  with pytest.raises(UserError, match=f"Subset size {size} is not between 1 and 100"):
    Subset(Shapes(100), size)


@pytest.mark.parametrize("i", [10, -1])
def test_indices_out_of_range_raise(i):
  with pytest.raises(IndexError, match=f"record {i} of 10"):
    Subset(Shapes(100), 10)[i]
