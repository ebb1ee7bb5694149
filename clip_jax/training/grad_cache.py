"""GradCache: the gradient of the whole batch, embedded one microbatch at a time."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.parallel.placement import shard_batch


def grad_cache(embed: Callable, pieces: int, policy: Callable | None = None) -> Callable:
  """Wraps `embed` to process the rows in pieces: same gradients, 1/pieces of the memory.

  The loss sees the embeddings of all rows, and the backward pass recomputes those of each piece.
  This is GradCache (Gao et al. 2021) as a single transform. BatchNorm normalises over a piece, and
  its running averages are the mean over the pieces.

  Args:
    embed: (params, stats, batch, keys) -> (stats, embeddings).
    pieces: number of pieces. Piece i holds the rows i, i + pieces, ..., so that each device keeps
      its own rows and the pieces are the same on any mesh.
    policy: what the backward pass does not recompute, as for `jax.checkpoint`.
  """
  if pieces == 1:
    return embed

  def pieced(params, stats, batch, keys):
    rows = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]), (batch, keys))  # [B/m, m, .]

    def one(mean, i):
      piece = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), rows)
      new, z = embed(params, stats, *piece)
      # What `embed` only passes on stays as it is, for example the objective's state per record.
      average = lambda m, n, o: m if n is o else m + (n - o) / pieces
      return jax.tree.map(average, mean, new, stats), z

    recomputed = jax.checkpoint(one, prevent_cse=False, policy=policy)
    stats, z = lax.scan(recomputed, stats, jnp.arange(pieces))
    return stats, jax.tree.map(lambda x: shard_batch(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])), z)

  return pieced
