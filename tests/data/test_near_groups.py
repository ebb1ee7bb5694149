"""Groups of near hashes match a comparison of all pairs."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from clip_jax.data import near_groups as module
from clip_jax.data.near_groups import near_groups


def by_all_pairs(hashes, distance):
  different = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1, dtype=int)
  _, component = connected_components(different <= distance, directed=False)
  return np.array([np.flatnonzero(component == c)[0] for c in component])


def hashes(n, density, seed=0):
  """Hashes with a probability that a bit is set; two thirds of them are near one of the others."""
  rng = np.random.default_rng(seed)
  base = rng.random((n // 3, 192)) < density
  near = base[rng.integers(len(base), size=n - len(base))] ^ (
    rng.random((n - len(base), 192)) < 0.02
  )
  return np.packbits(np.concatenate([base, near]), axis=1)[rng.permutation(n)]


@pytest.mark.parametrize("distance", [0, 1, 4, 8, 23])
@pytest.mark.parametrize("density", [0.5, 0.02, 0.005])  # With few bits set, most parts are equal.
def test_groups_match_a_comparison_of_all_pairs(distance, density, monkeypatch):
  given = hashes(200, density)
  expected = by_all_pairs(given, distance)
  np.testing.assert_array_equal(near_groups(given, distance), expected)
  # The same with the steps for many hashes.
  for name, value in (("_SHORT", 2), ("_COSTLY", 20), ("_BLOCK", 100)):
    monkeypatch.setattr(module, name, value)
  np.testing.assert_array_equal(near_groups(given, distance), expected)


def test_chains_are_one_group_and_the_first_index_names_it():
  chain = np.zeros((4, 24), np.uint8)
  chain[1, 0], chain[2, 0], chain[3] = 1, 3, 255
  order = [3, 2, 0, 1]
  np.testing.assert_array_equal(near_groups(chain[order], 1), [0, 1, 1, 1])
  np.testing.assert_array_equal(near_groups(chain[[3, 2, 0]], 1), [0, 1, 2])


def test_no_hashes_have_no_groups():
  assert near_groups(np.zeros((0, 24), np.uint8), 4).shape == (0,)


def test_many_hashes_that_agree_in_a_part_are_not_all_compared(monkeypatch):
  """20,000 hashes with one of 16 values in each byte: at random, 2e8 pairs."""
  rng = np.random.default_rng(0)
  given = rng.integers(0, 16, (20_000, 24)).astype(np.uint8)
  given[7] = given[19_000]
  given[7, 3] ^= 1
  compared, plain = [], module._Search._different
  monkeypatch.setattr(
    module._Search,
    "_different",
    lambda self, a, b: (compared.append(np.broadcast(a, b).size), plain(self, a, b))[1],
  )
  groups = near_groups(given, 4)
  assert np.flatnonzero(groups != np.arange(20_000)).tolist() == [19_000] and groups[19_000] == 7
  assert sum(compared) < 2e6
