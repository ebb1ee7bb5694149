"""Search for the most probable captions of a text decoder, and their texts."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.model.text_decoder import TextDecoder

_NEVER = -1e30


def best_captions(
  decoder: TextDecoder, memory: jax.Array, beams: int = 1, length_penalty: float = 0.6
) -> jax.Array:
  """Searches for the most probable caption of each image by beam search.

  At each position, the search keeps the `beams` most probable beginnings of captions. A caption
  ends with the first padding token, 0, or is as long as the decoder's context. Of the captions at
  the end, the one with the largest log-probability, divided by its number of tokens (with the
  padding token) to the power of `length_penalty`, is returned. One beam is greedy search.

  Args:
    decoder: the decoder.
    memory: tokens of the images, [B, N, memory_width].
    beams: number of beginnings that are kept, at least 1.
    length_penalty: 0 for no influence of the length.

  Returns:
    int32 [B, L], padded with 0.

  Raises:
    UserError: `beams` is below 1.
  """
  V, L, B = decoder.vocab_size, decoder.context_length, len(memory)
  if beams < 1:
    raise UserError(f"beams={beams} is below 1. Set it to 1 for greedy search, or to more.")
  memory = jnp.repeat(memory, beams, axis=0)  # [B * beams, N, D]
  only_end = jnp.where(jnp.arange(V) == 0, 0.0, _NEVER)  # Of captions that have ended.

  def step(position, carry):
    tokens, scores, ended = carry  # [B, beams, L], [B, beams], [B, beams]
    features = decoder(memory, tokens.reshape(B * beams, L))
    logits = decoder.head(lax.dynamic_index_in_dim(features, position, axis=1, keepdims=False))
    chances = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(B, beams, V)
    chances = jnp.where(ended[..., None], only_end, chances)
    total = (scores[..., None] + chances).reshape(B, beams * V)
    scores, best = lax.top_k(total, beams)
    origin, token = best // V, (best % V).astype(tokens.dtype)
    tokens = jnp.take_along_axis(tokens, origin[..., None], axis=1)
    tokens = lax.dynamic_update_index_in_dim(tokens, token, position, axis=2)
    ended = jnp.take_along_axis(ended, origin, axis=1) | (token == 0)
    return tokens, scores, ended

  # All beams start equal, so only the first one may be continued.
  scores = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER) * jnp.ones((B, 1))
  start = (jnp.zeros((B, beams, L), jnp.int32), scores, jnp.zeros((B, beams), bool))
  tokens, scores, _ = lax.fori_loop(0, L, step, start)
  length = jnp.minimum((tokens != 0).sum(-1) + 1, L)
  best = jnp.argmax(scores / length.astype(jnp.float32) ** length_penalty, axis=1)
  return jnp.take_along_axis(tokens, best[:, None, None], axis=1)[:, 0]


def decode_tokens(tokenizer: Any, tokens: np.ndarray) -> list[str]:
  """Turns tokens, int [B, L], padded with 0, into texts.

  Raises:
    UserError: the tokenizer has no method `decode`.
  """
  if not hasattr(tokenizer, "decode"):
    raise UserError(
      f"{type(tokenizer).__name__} cannot turn tokens into text, because it has no method "
      "decode(tokens). SentencePiece and ClipBpe have one."
    )
  return tokenizer.decode(tokens)
