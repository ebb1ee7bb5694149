"""Distillation of the similarities between rows."""

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.losses.chunks import (
  NEVER,
  by_chunk,
  checked_pair,
  float32,
  indices,
  others,
  product,
)


def relation_kl(
  z_a: jax.Array,
  z_b: jax.Array,
  scale: jax.Array | float,
  teacher_a: jax.Array,
  teacher_b: jax.Array,
  teacher_scale: jax.Array | float,
  *,
  chunk_size: int | None = None,
  include_own: bool = True,
) -> jax.Array:
  """KL divergence of a student's distribution over all rows from a teacher's.

  The distribution of row i of `z_a` over the rows j of `z_b` is the softmax of scale z_a[i] z_b[j].

  Args:
    z_a, z_b: the student's embeddings, [B, E], unit length.
    scale: the student's inverse temperature.
    teacher_a, teacher_b: the teacher's embeddings of the same rows, [B, E'], unit length; no
      gradient flows to them.
    teacher_scale: the teacher's inverse temperature.
    chunk_size: rows per chunk, a divisor of B; all rows by default.
    include_own: whether j = i is included.

  Returns:
    float32 [], the mean over the rows, in nats; 0 if both distributions are equal.

  Raises:
    UserError: `chunk_size` does not divide B, or the shapes differ.

  Source: Yang et al. 2024 (CLIP-KD), eq. 7 and 8.
  """
  z_a, z_b, scale = checked_pair(z_a, z_b, chunk_size), float32(z_b), float32(scale)
  teacher_a, teacher_b = lax.stop_gradient(
    (checked_pair(teacher_a, teacher_b, chunk_size), float32(teacher_b))
  )

  def one(a, t, row):
    keep = True if include_own else others(row, len(z_b))
    student = jnp.where(keep, scale * product(a, z_b), NEVER)
    teacher = jnp.where(keep, teacher_scale * product(t, teacher_b), NEVER)
    student, teacher = jax.nn.log_softmax(student, 1), jax.nn.log_softmax(teacher, 1)
    return jnp.where(keep, jnp.exp(teacher) * (teacher - student), 0).sum(1)

  return by_chunk(one, chunk_size, z_a, teacher_a, indices(z_a)).sum() / len(z_a)
