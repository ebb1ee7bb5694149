"""The text decoder of captioning models."""

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.nn import layers, transformer
from clip_jax.nn.cross_attention import DecoderBlock
from clip_jax.nn.matmul import activation_dtype
from clip_jax.parallel.placement import all_gather_param


class TextDecoder(nnx.Module):
  """Predicts each token of a text from the tokens before it and from the tokens of an image.

  Position l receives the embedding of token l - 1, and position 0 a learned one. A text ends with
  its first padding token, 0, which is predicted like any other.

  Args:
    vocab_size, context_length: of the tokenizer, V and L.
    memory_width: width of the image's tokens.
    width, depth, num_heads, mlp_dim: of the transformer.
    dtype: dtype to compute in.
    remat: rematerialisation policy of a block, a name in `remat.REMAT_POLICIES`.

  Source: Yu et al. 2022 (CoCa), sec. 3.2, with a decoder that shares nothing with the text tower;
  Tschannen et al. 2023 (CapPa), sec. 3, for parallel prediction.
  """

  def __init__(
    self,
    *,
    vocab_size: int,
    context_length: int,
    memory_width: int,
    width: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    dtype: str,
    remat: str,
    rngs: nnx.Rngs,
  ):
    self.vocab_size, self.context_length, self.dtype = vocab_size, context_length, dtype
    normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
    self.embedding = normal(vocab_size, width)
    self.start, self.unknown = normal(width), normal(width)
    self.positions = normal(context_length, width)
    self.norm_memory = layers.LayerNorm(memory_width, dtype=dtype)
    make = lambda rngs: DecoderBlock(
      width, memory_width, num_heads, mlp_dim, dtype=dtype, rngs=rngs
    )
    self.stack = transformer.Stack(make, depth, remat=remat, rngs=rngs)
    self.norm = layers.LayerNorm(width, dtype=dtype)
    self.head = layers.Linear(width, vocab_size, dtype=dtype, rngs=rngs)

  def __call__(
    self, memory: jax.Array, tokens: jax.Array, parallel: jax.Array | None = None
  ) -> jax.Array:
    """Image tokens [B, N, memory_width] and int [B, L] -> features [B, L, D] for `head`.

    Args:
      memory: tokens of the images.
      tokens: the captions, of which position l sees those before l.
      parallel: bool [B], rows that see none of the tokens (CapPa); None for no such rows.
    """
    L = tokens.shape[1]
    embedded = all_gather_param(self.embedding[...])[tokens[:, :-1]]
    start = jnp.broadcast_to(self.start[...], (len(tokens), 1, embedded.shape[-1]))
    x = jnp.concatenate([start, embedded], axis=1)  # [B, L, D]
    mask = jnp.tril(jnp.ones((1, 1, L, L), bool))
    if parallel is not None:
      x = jnp.where(parallel[:, None, None], self.unknown[...], x)
      mask = mask | parallel[:, None, None, None]
    x = (x + self.positions[:L]).astype(activation_dtype(self.dtype))
    return self.norm(self.stack(x, mask, self.norm_memory(memory)))


def caption_weights(tokens: jax.Array) -> jax.Array:
  """Returns 1 for the tokens of each text and the padding that ends it, float32 [B, L]."""
  positions = jnp.arange(tokens.shape[1])
  end = jnp.max((positions + 1) * (tokens != 0), axis=1)  # [B]
  return (positions <= end[:, None]).astype(jnp.float32)
