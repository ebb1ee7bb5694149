"""Rows in chunks, and the checks that losses share; see the package's docstring."""

from collections.abc import Callable
import functools
import math
from typing import Any, Literal

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.errors import UserError

# Logit of a masked candidate. Finite, because logsumexp over only -inf has a NaN gradient.
NEVER = -1e30

SameGroup = Literal["positive", "ignore", "negative"]


def float32(x: jax.Array | float) -> jax.Array:
  """Casts to float32."""
  return jnp.asarray(x, jnp.float32)


def checked_pair(z_a: jax.Array, z_b: jax.Array, chunk_size: int | None) -> jax.Array:
  """Returns `z_a` in float32; raises `UserError` if the shapes or `chunk_size` are invalid."""
  if z_a.ndim != 2 or z_a.shape != z_b.shape:
    raise UserError(
      f"Embeddings of shapes {z_a.shape} and {z_b.shape} cannot be compared row by "
      "row: both must have the same shape [B, E]."
    )
  check_chunk_size(chunk_size, len(z_a))
  return float32(z_a)


def check_chunk_size(chunk_size: int | None, B: int) -> None:
  """Raises `UserError` unless `chunk_size` divides B or is None."""
  if chunk_size is not None and (chunk_size < 1 or B % chunk_size):
    divisors = sorted(n for d in range(1, math.isqrt(B) + 1) if B % d == 0 for n in (d, B // d))
    near = [d for d in divisors if d < chunk_size][-1:]
    near += [d for d in divisors if d > chunk_size][:1]
    raise UserError(
      f"chunk_size {chunk_size} does not divide the batch of {B} rows. Nearest divisors: "
      f"{', '.join(map(str, near))}. Set chunk_size to one of them, or to None "
      "for all rows at once."
    )


def checked_groups(
  groups: jax.Array | None, same_group: SameGroup, z: jax.Array
) -> jax.Array | None:
  """Returns the groups as [B, n], or None if they are not used."""
  if groups is None or same_group == "negative":
    return None
  if same_group not in ("positive", "ignore"):
    raise UserError(f"same_group={same_group!r} is not one of 'positive', 'ignore' and 'negative'.")
  if groups.ndim not in (1, 2) or len(groups) != len(z):
    raise UserError(
      f"The groups have shape {groups.shape}; expected one entry per row: ({len(z)},) or "
      f"({len(z)}, n)."
    )
  return lax.stop_gradient(groups.reshape(len(z), -1))


def same_rows(group: jax.Array, groups: jax.Array) -> jax.Array:
  """Whether two rows are of one group: [b, n] and [B, n] -> bool [b, B]."""
  columns = (group[:, None, k] == groups[:, k] for k in range(groups.shape[1]))
  return functools.reduce(jnp.logical_and, columns)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
  """[b, E] and [B, E] -> [b, B], in full float32 on every device."""
  return jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)


def indices(x: jax.Array) -> jax.Array:
  """Returns the numbers of the rows of x, int [B]."""
  return jnp.arange(len(x))


def others(row: jax.Array, B: int) -> jax.Array:
  """Mask, bool [b, B], False on the diagonal; jnp.diagonal would gather across devices."""
  return row[:, None] != jnp.arange(B)


def own_similarity(similarity: jax.Array, other: jax.Array) -> jax.Array:
  """Similarity of each row to its partner, [b], from the same product so that ties are exact."""
  return jnp.where(other, -jnp.inf, similarity).max(1)


def in_chunks(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, ...] -> [B/b, b, ...]; chunk i has rows i, i + B/b, ..., so rows stay on their device."""
  return x.reshape(chunk_size, -1, *x.shape[1:]).swapaxes(0, 1)


def joined(x: jax.Array) -> jax.Array:
  """Inverse of `in_chunks`: [B/b, b, ...] -> [B, ...]."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def by_chunk(f: Callable, chunk_size: int | None, *rows: jax.Array) -> Any:
  """Maps `f` over chunks of rows and stacks the results; recomputes each in the backward pass.

  Args:
    f: takes one chunk of each of `rows` and returns arrays, or a tree of arrays.
    chunk_size: rows per chunk, a divisor of B; None for all rows at once.
    rows: arrays [B, ...].

  Returns:
    The results of `f` with a leading axis of B / chunk_size.
  """
  if chunk_size is None or chunk_size == len(rows[0]):
    return jax.tree.map(lambda x: x[None], f(*rows))
  one = jax.checkpoint(lambda xs: f(*xs), prevent_cse=False)
  return lax.map(one, tuple(in_chunks(x, chunk_size) for x in rows))
