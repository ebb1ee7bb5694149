"""SimCLR's loss of two views of each image, and its accuracy."""

import jax
from jax import lax
from jax.nn import logsumexp, softplus
import jax.numpy as jnp

from clip_jax.losses.chunks import (
  NEVER,
  by_chunk,
  checked_pair,
  float32,
  indices,
  joined,
  others,
  own_similarity,
  product,
)


def nt_xent(
  z_a: jax.Array, z_b: jax.Array, temperature: jax.Array | float, *, chunk_size: int | None = None
) -> jax.Array:
  """SimCLR's loss: identify a view's partner among the 2B - 1 other views in the batch.

  Args:
    z_a, z_b: [B, E], unit length; rows i are two views of the same image.
    temperature: > 0 (0.1 in SimCLR and in SLIP).
    chunk_size: rows per chunk, a divisor of B; all rows by default.

  Returns:
    float32 [], mean over all 2B views, in nats; log(2B - 1) when all views are the same.

  Raises:
    UserError: `chunk_size` does not divide B, or the shapes differ.

  Source: Chen et al. 2020 (SimCLR), eq. 1; Mu et al. 2021 (SLIP), sec. 3.
  """
  z_a, z_b = checked_pair(z_a, z_b, chunk_size), float32(z_b)
  scale = 1 / float32(temperature)
  positive = (z_a * z_b).sum(1)  # [B]

  def one(a, b, own, row):
    ab, aa, bb = product(a, z_b), product(a, z_a), product(b, z_b)  # [b, B] each
    other = others(row, len(z_b))
    from_own = lambda similarity: logsumexp(
      jnp.where(other, scale * (similarity - own[:, None]), NEVER), axis=1
    )
    return (
      jnp.logaddexp(from_own(ab), from_own(aa)),
      from_own(bb),
      logsumexp(jnp.where(other, scale * (ab - positive), NEVER), axis=0),
    )

  a, bb, ba = by_chunk(one, chunk_size, z_a, z_b, positive, indices(z_a))
  b = jnp.logaddexp(logsumexp(ba, axis=0), joined(bb))  # [B]
  return (softplus(a).mean() + softplus(b).mean()) / 2


def nt_xent_accuracy(z_a: jax.Array, z_b: jax.Array, *, chunk_size: int | None = None) -> jax.Array:
  """Computes how often a view's nearest among the 2B - 1 others is its partner; ties are errors.

  Args:
    z_a, z_b: [B, E], unit length; rows i are two views of the same image.
    chunk_size: rows per chunk, a divisor of B; all rows by default.

  Returns:
    float32 [] in [0, 1], the fraction of all 2B views (SLIP reports that of the first B only).

  Raises:
    UserError: `chunk_size` does not divide B, or the shapes differ.
  """
  z_a, z_b = lax.stop_gradient((checked_pair(z_a, z_b, chunk_size), float32(z_b)))

  def one(a, b, row):
    ab, other = product(a, z_b), others(row, len(z_b))  # [b, B]
    negative = lambda similarity: jnp.where(other, similarity, -jnp.inf)
    return (
      own_similarity(ab, other),
      jnp.maximum(negative(ab).max(1), negative(product(a, z_a)).max(1)),
      negative(product(b, z_b)).max(1),
      negative(ab).max(0),
    )

  positive, a, bb, ba = by_chunk(one, chunk_size, z_a, z_b, indices(z_a))
  b = jnp.maximum(ba.max(0), joined(bb))  # [B]
  return (
    (positive > a).mean(dtype=jnp.float32) + (joined(positive) > b).mean(dtype=jnp.float32)
  ) / 2
