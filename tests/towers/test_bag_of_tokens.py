"""The bag of tokens, against a sum written out."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.towers.bag_of_tokens import BagOfTokens
from tiny import LENGTH, VOCABULARY, batch


def bag(**changes):
  spec = call(
    BagOfTokens, **{**dict(vocab_size=VOCABULARY, context_length=LENGTH, width=48), **changes}
  )
  return build(spec, rngs=nnx.Rngs(0))


def test_features_are_the_sum_of_token_embeddings():
  tower, tokens = bag(), batch(6)["tokens"]
  table = np.asarray(tower.embedding[...])
  expected = [sum(table[t] for t in row if t) for row in tokens]
  np.testing.assert_allclose(tower(tokens), expected, rtol=1e-5, atol=1e-6)


def test_order_and_padding_do_not_matter():
  tower = bag()
  np.testing.assert_allclose(
    tower(jnp.asarray([[5, 9, 7, 0, 0, 0, 0, 0]])),
    tower(jnp.asarray([[7, 5, 9, 0, 0, 0, 0, 0]])),
    rtol=1e-6,
  )
  # OpenAI's vocabulary has a word with id 0, so a 0 before the last token is that word.
  within = tower(jnp.asarray([[5, 0, 7, 0, 0, 0, 0, 0]]))
  np.testing.assert_allclose(
    within - tower(jnp.asarray([[5, 7, 0, 0, 0, 0, 0, 0]])), tower.embedding[...][:1], atol=1e-6
  )


def test_initial_norms_grow_with_the_logarithm_of_the_rank():
  table = np.asarray(bag(vocab_size=10_000, width=64).embedding[...])
  lengths = np.linalg.norm(table, axis=1)
  for low, high in ((9, 20), (90, 110), (900, 1100), (9000, 10_000)):
    rank = np.sqrt(low * high)
    assert lengths[low:high].mean() == pytest.approx(np.log(rank) / np.log(10_000), rel=0.06)


def test_texts_of_another_length_are_an_error():
  with pytest.raises(UserError, match="expected 8 tokens per text, but got 5"):
    bag()(jnp.zeros((1, 5), jnp.int32))
