"""Cutting the padding of texts leaves their features as they are."""

from flax import nnx
import jax
import numpy as np
import pytest

from clip_jax.config import build
from tiny import text_tower

L, END = 40, 63


def texts(pad):
  """Texts of 3, 17 and 9 tokens with an end token."""
  rng = np.random.default_rng(0)
  tokens = np.full((3, L), pad, np.int32)
  for row, n in zip(tokens, (3, 17, 9)):
    row[:n] = [*rng.integers(1, 50, n - 1), END]
  return tokens


@pytest.mark.parametrize(
  "form, pad",
  [
    (dict(causal=True, pool="eot", eos_id=END, mask_padding=False), END),
    (dict(causal=True, pool="eot", mask_padding=False), 0),
    (dict(pool="eot"), 0),
    (dict(pool="mean"), 0),
    (dict(pool="map", causal=True), 0),
  ],
)
def test_features_do_not_depend_on_padding_that_is_cut(form, pad):
  tower = build(text_tower(context_length=L, **form), rngs=nnx.Rngs(0))
  tokens = texts(pad)
  cut = tower.cut_padding(tokens)
  assert cut.shape == (3, 32)
  np.testing.assert_array_equal(cut, tokens[:, :32])
  encode = jax.jit(tower.__call__)
  np.testing.assert_allclose(encode(cut), encode(tokens), atol=2e-6)


@pytest.mark.parametrize("form", [dict(pool="last"), dict(pool="mean", mask_padding=False)])
def test_towers_that_see_padding_get_all_of_it(form):
  tower = build(text_tower(context_length=L, **form), rngs=nnx.Rngs(0))
  assert tower.cut_padding(texts(0)).shape == (3, L)


def test_lengths_are_few():
  tower = build(text_tower(context_length=77, pool="mean"), rngs=nnx.Rngs(0))
  lengths = {
    tower.cut_padding((np.arange(77) < n).astype(np.int32)[None]).shape[1] for n in range(78)
  }
  assert lengths == {16, 32, 64, 77}
