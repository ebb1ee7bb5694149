"""Cross-entropy of the tokens of captions, with the logits of a few rows in memory at a time."""

from collections.abc import Callable

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

from clip_jax.losses.chunks import by_chunk, check_chunk_size, float32, joined

_LOGITS = 2**26  # Logits per chunk if no size is given: 256 MB in float32.


def token_cross_entropy(
  head: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  tokens: jax.Array,
  weights: jax.Array,
  *,
  vocab_size: int,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Weighted cross-entropy of each row's tokens, sum over l of -w_l log softmax(logits)[token_l].

  The logits are computed for `chunk_size` rows at a time and recomputed in the backward pass, so
  the value and the gradient are those of the dense form, up to rounding.

  Args:
    head: features [..., D] -> logits [..., V].
    x: features, [B, L, D]; or [B, D], in which case all tokens of a row share one distribution.
    tokens: int [B, L], below `vocab_size`.
    weights: float [B, L]; 0 leaves a token out.
    vocab_size: V.
    chunk_size: rows per chunk, a divisor of B; by default the largest one with at most 2^26 logits.

  Returns:
    float32 [B] each: the loss of each row in nats, and the weight of the tokens of each row that
    have the largest logit.

  Raises:
    UserError: `chunk_size` does not divide B.
  """
  B = len(x)
  if chunk_size is None:
    most = max(1, _LOGITS // (vocab_size * (x.shape[1] if x.ndim == 3 else 1)))
    chunk_size = next(n for n in range(min(B, most), 0, -1) if B % n == 0)
  check_chunk_size(chunk_size, B)

  def one(x, tokens, weights):
    logits = float32(head(x if x.ndim == 3 else x[:, None]))  # [b, L or 1, V]
    total, largest = logsumexp(logits, axis=-1), logits.max(-1)
    if logits.shape[1] == tokens.shape[1]:
      own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    else:
      own = jnp.take_along_axis(logits[:, 0], tokens, axis=-1)
    return (weights * (total - own)).sum(1), (weights * (own >= largest)).sum(1)

  loss, correct = by_chunk(one, chunk_size, x, tokens, float32(weights))
  return joined(loss), joined(correct)
