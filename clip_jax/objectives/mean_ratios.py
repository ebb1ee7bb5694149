"""Ratios of other pairs to the own pair, which global losses estimate over the data set."""

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.losses.chunks import (
  NEVER,
  SameGroup,
  by_chunk,
  checked_groups,
  checked_pair,
  float32,
  indices,
  joined,
  others,
  product,
  same_rows,
)


def log_mean_ratios(
  z_a: jax.Array,
  z_b: jax.Array,
  scale_a: jax.Array,
  scale_b: jax.Array,
  *,
  chunk_size: int | None = None,
  groups: jax.Array | None = None,
  same_group: SameGroup = "ignore",
) -> tuple[jax.Array, jax.Array]:
  """Logarithms of the mean ratios of other pairs to the own pair, as global losses use them.

  Args:
    z_a, z_b: [B, E], unit length, with cosines s_ij = z_a[i] @ z_b[j].
    scale_a, scale_b: [B], inverse temperature of each row of `z_a` and of `z_b`.
    chunk_size: rows per chunk, a divisor of B; all rows by default.
    groups: int [B] or [B, n], the group of each row; None if each row is a group of its own.
    same_group: "ignore" leaves other rows of a row's group out; "negative" does not use the groups.

  Returns:
    float32 [B] each: log of the mean over j != i of exp(scale_a[i] (s_ij - s_ii)), and log of the
    mean over i != j of exp(scale_b[j] (s_ij - s_jj)); about -1e30 for a row without others.

  Raises:
    UserError: `chunk_size` does not divide B, the shapes differ, or `same_group` is "positive".

  Source: Yuan et al. 2022 (SogCLR), eq. 3.
  """
  if same_group == "positive":
    raise UserError("same_group='positive' has no mean ratio. Use 'ignore' or 'negative'.")
  z_a, z_b = checked_pair(z_a, z_b, chunk_size), float32(z_b)
  groups = checked_groups(groups, same_group, z_a)
  positive = (z_a * z_b).sum(1)

  def one(a, own, scale, row, *group):
    similarity, other = product(a, z_b), others(row, len(z_b))  # [b, B]
    if group:
      other = other & ~same_rows(group[0], groups)
    by_row = scale[:, None] * (similarity - own[:, None])
    return (
      logsumexp(jnp.where(other, by_row, NEVER), axis=1),
      other.sum(1),
      logsumexp(jnp.where(other, scale_b * (similarity - positive), NEVER), axis=0),
      other.sum(0),
    )

  group = () if groups is None else (groups,)
  rows = (z_a, positive, float32(scale_a), indices(z_a), *group)
  by_row, row_count, by_column, column_count = by_chunk(one, chunk_size, *rows)
  log_mean = lambda total, count: total - jnp.log(jnp.maximum(count, 1).astype(jnp.float32))
  return (
    log_mean(joined(by_row), joined(row_count)),
    log_mean(logsumexp(by_column, axis=0), column_count.sum(0)),
  )
