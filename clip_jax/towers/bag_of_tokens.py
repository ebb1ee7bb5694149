"""A bag-of-tokens text tower, which ignores order; for small datasets."""

from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import ContextLength, Range, Width, checked
from clip_jax.parallel.placement import all_gather_param, shard_batch
from clip_jax.towers.text import check_context_length, real_tokens


@checked
class BagOfTokens(nnx.Module):
  """The sum of the token embeddings, which are initialised longer for rare tokens.

  Vocabularies are sorted by frequency, most frequent tokens first, and frequency is about inversely
  proportional to rank (Zipf's law). So the logarithm of a token's id estimates its inverse document
  frequency without looking at the texts, and the initial embeddings have norms proportional to it.

  Args:
    vocab_size: vocabulary size of the tokenizer.
    context_length: context length of the tokenizer, L.
    width: embedding width, D.

  Source: Sparck Jones 1972, for weighting by inverse document frequency.
  """

  def __init__(
    self,
    *,
    vocab_size: Annotated[int, Range(2, 2**31 - 1)] = 32_000,
    context_length: ContextLength = 16,
    width: Width = 512,
    rngs: nnx.Rngs,
  ):
    self.vocab_size, self.context_length, self.width = vocab_size, context_length, width
    rarity = jnp.log1p(jnp.arange(vocab_size)) / jnp.log(vocab_size)  # From 0 to 1.
    directions = jax.random.normal(rngs.params(), (vocab_size, width))
    self.embedding = nnx.Param(width**-0.5 * rarity[:, None] * directions)

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Token ids, int32 [B, L], padded with 0 -> float32 [B, D]."""
    check_context_length(self.context_length, tokens)
    real, _ = real_tokens(tokens)  # [B, L]
    vectors = all_gather_param(self.embedding[...])[tokens]  # [B, L, D]
    return shard_batch(jnp.where(real[:, :, None], vectors, 0).sum(axis=1))
