"""A bag of tokens, which has no order: a text tower for few texts."""

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.sharding import on_rows, whole
from clip_jax.towers.text import check_length, real_tokens


class BagOfTokens(nnx.Module):
  """The sum of a vector for each token, long where the token is rare.

  Vocabularies are sorted, frequent pieces first, and frequency falls as one over the rank (Zipf):
  the logarithm of a token's number is what is known of its rarity without a look at the texts. So
  vectors start that much longer, which is the weight that a search engine gives to a word; training
  finds the rest.

  Args:
    vocabulary: number of tokens; the tokenizer's.
    length: tokens of a text, L; the tokenizer's.
    width: of the vectors, D.

  Source: Sparck Jones 1972, for the weight by rarity.
  """

  def __init__(self, *, vocabulary: int = 32_000, length: int = 16, width: int = 512,
               rngs: nnx.Rngs):
    self.vocabulary, self.length, self.width = vocabulary, length, width
    rarity = jnp.log1p(jnp.arange(vocabulary)) / jnp.log(vocabulary)        # From 0 to 1.
    directions = jax.random.normal(rngs.params(), (vocabulary, width))
    self.embedding = nnx.Param(width**-0.5 * rarity[:, None] * directions)

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """int32 [B, L], 0 is padding -> float32 [B, D]."""
    check_length(self.length, tokens)
    real, _ = real_tokens(tokens)                                           # [B, L]
    vectors = whole(self.embedding[...])[tokens]                            # [B, L, D]
    return on_rows(jnp.where(real[:, :, None], vectors, 0).sum(axis=1))
