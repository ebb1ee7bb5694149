"""Losses of matching images and texts."""

import jax
from jax.nn import logsumexp, softplus
import jax.numpy as jnp

from clip_jax.losses.chunks import (
  NEVER,
  SameGroup,
  by_chunk,
  checked_groups,
  checked_pair,
  float32,
  indices,
  others,
  product,
  same_rows,
)


def info_nce(
  z_a: jax.Array,
  z_b: jax.Array,
  scale: jax.Array | float,
  *,
  chunk_size: int | None = None,
  groups: jax.Array | None = None,
  same_group: SameGroup = "positive",
) -> jax.Array:
  """InfoNCE, the symmetric cross-entropy of matching row i of `z_a` with row i of `z_b`.

  Args:
    z_a, z_b: [B, E], unit length.
    scale: inverse temperature, > 0 (in CLIP, it starts at 1/0.07 and is bounded by 100).
    chunk_size: rows per chunk, a divisor of B; all rows by default.
    groups: int [B] or [B, n], the group of each row; None if each row is a group of its own.
    same_group: "positive" makes the target of a row uniform over the rows of its group. "ignore"
      leaves the other rows of the group out of the softmax. "negative" does not use the groups.
      Where the embeddings of a group are equal on one side, as those of equal texts are, "positive"
      gives exactly the loss of "negative": a softmax over equal candidates shares its probability
      among them anyway, and what the other side gains for one row it loses for another.

  Returns:
    float32 [], mean of both directions, in nats; log B when scale is 0 and nothing is ignored.

  Raises:
    UserError: `chunk_size` does not divide B, or the shapes differ.

  Source: Radford et al. 2021, fig. 3; the targets of "positive" are those of UniCL (Yang et
  al. 2022).
  """
  z_a, z_b, scale = checked_pair(z_a, z_b, chunk_size), float32(z_b), float32(scale)
  groups = checked_groups(groups, same_group, z_a)
  positive = (z_a * z_b).sum(1)  # [B]

  # -log(e^p / (e^p + sum_j e^n_j)) = softplus(logsumexp_j(n_j - p)). Subtracting p first avoids the
  # cancellation between two numbers near 100 that would occur with a well-trained model.
  def one(a, own, row, *group):
    similarity, other = product(a, z_b), others(row, len(z_b))  # [b, B]
    by_row, by_column = scale * (similarity - own[:, None]), scale * (similarity - positive)
    same = other & same_rows(group[0], groups) if group else None
    if group and same_group == "ignore":
      other = other & ~same
    found = (
      logsumexp(jnp.where(other, by_row, NEVER), axis=1),
      logsumexp(jnp.where(other, by_column, NEVER), axis=0),
    )
    if not group or same_group == "ignore":
      return found
    # The targets of a row are the 1 + n rows of its group, and the difference for its own is 0.
    total = lambda x, axis: jnp.where(same, x, 0).sum(axis)
    return (*found, total(by_row, 1) / (1 + total(1.0, 1)), total(by_column, 0), total(1.0, 0))

  group = () if groups is None else (groups,)
  # [B/b, b], [B/b, B]; the differences to the other positives in the same shapes.
  by_row, by_column, *more = by_chunk(one, chunk_size, z_a, positive, indices(z_a), *group)
  loss = (softplus(by_row).mean() + softplus(logsumexp(by_column, axis=0)).mean()) / 2
  if not more:
    return loss
  row_gain, column_gain, column_count = more
  column_gain = column_gain.sum(0) / (1 + column_count.sum(0))
  return loss - (row_gain.mean() + column_gain.mean()) / 2


def sigmoid_pairs(
  z_image: jax.Array,
  z_text: jax.Array,
  scale: jax.Array | float,
  bias: jax.Array | float,
  *,
  chunk_size: int | None = None,
  groups: jax.Array | None = None,
  same_group: SameGroup = "positive",
) -> jax.Array:
  """SigLIP's loss: binary classification of every image-text pair as matching or not.

  Args:
    z_image, z_text: [B, E], unit length.
    scale: inverse temperature, > 0 (SigLIP starts at 10).
    bias: added to every logit (SigLIP starts at -10, because only 1 pair in B is positive).
    chunk_size: rows per chunk, a divisor of B; all rows by default.
    groups: int [B] or [B, n], the group of each row; None if each row is a group of its own.
    same_group: whether the pairs of different rows of one group are labeled "positive" or
      "negative", or left out of the sum ("ignore").

  Returns:
    float32 [], the sum over the B^2 pairs divided by B, in nats; B log 2 when scale and bias are 0
    and nothing is ignored.

  Raises:
    UserError: `chunk_size` does not divide B, or the shapes differ.

  Source: Zhai et al. 2023 (SigLIP), algorithm 1.
  """
  z_image, z_text = checked_pair(z_image, z_text, chunk_size), float32(z_text)
  scale, bias = float32(scale), float32(bias)
  groups = checked_groups(groups, same_group, z_image)

  def one(image, row, *group):
    logits = scale * product(image, z_text) + bias  # [b, B]
    other = others(row, len(z_text))
    if not group:
      return softplus(jnp.where(other, logits, -logits)).sum(1)
    same = same_rows(group[0], groups)
    if same_group == "positive":
      return softplus(jnp.where(same, -logits, logits)).sum(1)
    terms = softplus(jnp.where(other, logits, -logits))
    return jnp.where(other & same, 0, terms).sum(1)

  group = () if groups is None else (groups,)
  return by_chunk(one, chunk_size, z_image, indices(z_image), *group).sum() / len(z_image)
