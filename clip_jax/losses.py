"""Contrastive losses and accuracies, dense or a block of rows at a time; functions of embeddings.

Every loss compares each of B rows with all B rows. With `block` it makes `block` rows of that B x B
matrix at a time, in the forward and again in the backward pass, so it needs a few times
4 B (block + B / block) bytes where the dense form needs a few times 4 B^2; the value and the
gradients are the same. Under `jit` with rows sharded over devices, "all rows" are those of the
global batch, and blocks leave every row on its device.

Embeddings of any float type are taken to float32, and products are float32 too where a device's
default is less (TPU bfloat16, NVIDIA TF32): at scale 100 a logit wrong by 0.4% is wrong by 0.4.
"""

import math

import jax
from jax import lax
from jax.nn import logsumexp, softplus
import jax.numpy as jnp

from clip_jax.errors import UserError

# Stands for "not a candidate". Finite, because logsumexp over nothing but -inf has a NaN gradient.
_NEVER = -1e30


def info_nce(z_a: jax.Array, z_b: jax.Array, scale: jax.Array | float, *,
             block: int | None = None) -> jax.Array:
  """Symmetric cross-entropy of matching each row of `z_a` with the same row of `z_b`.

  Args:
    z_a, z_b: [B, E], unit length.
    scale: inverse temperature, > 0 (CLIP starts at 1/0.07 and stops at 100).
    block: rows compared at a time, a divisor of B; all at once by default.

  Returns:
    float32 [], mean of both directions, in nats; log B when scale is 0.

  Raises:
    UserError: `block` does not divide B, or the shapes differ.

  Source: Radford et al. 2021, fig. 3.
  """
  z_a, z_b, scale = _checked(z_a, z_b, block), _float32(z_b), _float32(scale)
  positive = (z_a * z_b).sum(1)                                             # [B]

  # -log(e^p / (e^p + sum_j e^n_j)) = softplus(logsumexp_j(n_j - p)). Subtracting first keeps the
  # digits that a difference of two numbers near 100 would lose once the model is good.
  def one(a, own, row):
    similarity, other = _product(a, z_b), _others(row, len(z_b))            # [b, B]
    return (logsumexp(jnp.where(other, scale * (similarity - own[:, None]), _NEVER), axis=1),
            logsumexp(jnp.where(other, scale * (similarity - positive), _NEVER), axis=0))

  by_row, by_column = _by_block(one, block, z_a, positive, _indices(z_a))   # [B/b, b], [B/b, B]
  return (softplus(by_row).mean() + softplus(logsumexp(by_column, axis=0)).mean()) / 2


def sigmoid_pairs(z_image: jax.Array, z_text: jax.Array, scale: jax.Array | float,
                  bias: jax.Array | float, *, block: int | None = None) -> jax.Array:
  """Every image with every text, each a yes-or-no question: do they belong together?

  Args:
    z_image, z_text: [B, E], unit length.
    scale: inverse temperature, > 0 (SigLIP starts at 10).
    bias: added to every logit (SigLIP starts at -10, as 1 pair in B is positive).
    block: rows compared at a time, a divisor of B; all at once by default.

  Returns:
    float32 [], sum over the B^2 pairs divided by B, in nats; B log 2 when both scalars are 0.

  Raises:
    UserError: `block` does not divide B, or the shapes differ.

  Source: Zhai et al. 2023 (SigLIP), algorithm 1.
  """
  z_image, z_text = _checked(z_image, z_text, block), _float32(z_text)
  scale, bias = _float32(scale), _float32(bias)

  def one(image, row):
    logits = scale * _product(image, z_text) + bias                         # [b, B]
    return softplus(jnp.where(_others(row, len(z_text)), logits, -logits)).sum(1)

  return _by_block(one, block, z_image, _indices(z_image)).sum() / len(z_image)


def nt_xent(z_a: jax.Array, z_b: jax.Array, temperature: jax.Array | float, *,
            block: int | None = None) -> jax.Array:
  """SimCLR's loss: find the other view of an image among the 2B - 1 other views in the batch.

  Args:
    z_a, z_b: [B, E], unit length; row i of both are two views of one image.
    temperature: > 0 (0.1 in SimCLR and in SLIP).
    block: rows compared at a time, a divisor of B; all at once by default.

  Returns:
    float32 [], mean over all 2B views, in nats; log(2B - 1) when all views are the same.

  Raises:
    UserError: `block` does not divide B, or the shapes differ.

  Source: Chen et al. 2020 (SimCLR), eq. 1; Mu et al. 2021 (SLIP), sec. 3.
  """
  z_a, z_b = _checked(z_a, z_b, block), _float32(z_b)
  scale = 1 / _float32(temperature)
  positive = (z_a * z_b).sum(1)                                             # [B]

  def one(a, b, own, row):
    ab, aa, bb = _product(a, z_b), _product(a, z_a), _product(b, z_b)       # [b, B] each
    other = _others(row, len(z_b))
    from_own = lambda similarity: logsumexp(
        jnp.where(other, scale * (similarity - own[:, None]), _NEVER), axis=1)
    return (jnp.logaddexp(from_own(ab), from_own(aa)), from_own(bb),
            logsumexp(jnp.where(other, scale * (ab - positive), _NEVER), axis=0))

  a, bb, ba = _by_block(one, block, z_a, z_b, positive, _indices(z_a))
  b = jnp.logaddexp(logsumexp(ba, axis=0), _rows(bb))                       # [B]
  return (softplus(a).mean() + softplus(b).mean()) / 2


def accuracies(z_a: jax.Array, z_b: jax.Array, *,
               block: int | None = None) -> tuple[jax.Array, jax.Array]:
  """How often a row of one is nearer to its own row of the other than to any other; ties lose.

  Costs one product more than the loss has, forward only, so it can be logged at every step: at
  16,384 rows of 512 numbers 0.3 TFLOP, where the step of a ViT-B/32 around it has about 700. The
  dense form shares the loss's product, which the compiler sees to.

  Args:
    z_a, z_b: [B, E], unit length.
    block: rows compared at a time, a divisor of B; all at once by default.

  Returns:
    Two float32 [] in [0, 1]: rows of `z_a` that find theirs in `z_b`, and the reverse.

  Raises:
    UserError: `block` does not divide B, or the shapes differ.
  """
  z_a, z_b = lax.stop_gradient((_checked(z_a, z_b, block), _float32(z_b)))

  def one(a, row):
    similarity, other = _product(a, z_b), _others(row, len(z_b))            # [b, B]
    negative = jnp.where(other, similarity, -jnp.inf)
    return _own(similarity, other), negative.max(1), negative.max(0)

  positive, by_row, by_column = _by_block(one, block, z_a, _indices(z_a))
  return ((positive > by_row).mean(dtype=jnp.float32),
          (_rows(positive) > by_column.max(0)).mean(dtype=jnp.float32))


def nt_xent_accuracy(z_a: jax.Array, z_b: jax.Array, *, block: int | None = None) -> jax.Array:
  """How often a view's nearest among the other 2B - 1 views is its own image's; ties lose.

  Args:
    z_a, z_b: [B, E], unit length; row i of both are two views of one image.
    block: rows compared at a time, a divisor of B; all at once by default.

  Returns:
    float32 [] in [0, 1], over all 2B views (SLIP reports that of the first views alone).

  Raises:
    UserError: `block` does not divide B, or the shapes differ.
  """
  z_a, z_b = lax.stop_gradient((_checked(z_a, z_b, block), _float32(z_b)))

  def one(a, b, row):
    ab, other = _product(a, z_b), _others(row, len(z_b))                    # [b, B]
    negative = lambda similarity: jnp.where(other, similarity, -jnp.inf)
    return (_own(ab, other),
            jnp.maximum(negative(ab).max(1), negative(_product(a, z_a)).max(1)),
            negative(_product(b, z_b)).max(1), negative(ab).max(0))

  positive, a, bb, ba = _by_block(one, block, z_a, z_b, _indices(z_a))
  b = jnp.maximum(ba.max(0), _rows(bb))                                     # [B]
  return ((positive > a).mean(dtype=jnp.float32)
          + (_rows(positive) > b).mean(dtype=jnp.float32)) / 2


def _float32(x):
  return jnp.asarray(x, jnp.float32)


def _checked(z_a, z_b, block):
  """`z_a` in float32, once both have the right shape and `block` divides their rows."""
  if z_a.ndim != 2 or z_a.shape != z_b.shape:
    raise UserError(f"Embeddings of shapes {z_a.shape} and {z_b.shape} cannot be compared row by "
                    "row: both must be [B, E], as many rows of as many numbers.")
  B = len(z_a)
  if block is not None and (block < 1 or B % block):
    divisors = sorted(n for d in range(1, math.isqrt(B) + 1) if B % d == 0 for n in (d, B // d))
    near = [d for d in divisors if d < block][-1:] + [d for d in divisors if d > block][:1]
    raise UserError(f"block {block} does not divide the batch of {B} rows; nearest that do: "
                    f"{', '.join(map(str, near))}. Set the loss's block to one of them, or to None "
                    "for all rows at once.")
  return _float32(z_a)


def _product(x, y):
  return jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)


def _indices(x):
  return jnp.arange(len(x))


def _others(row, B):
  """bool [b, B], False where a row meets itself. An index comparison, for jnp.diagonal gathers."""
  return row[:, None] != jnp.arange(B)


def _own(similarity, other):
  """[b], each row's similarity to its own; out of the same product, so that a tie is one."""
  return jnp.where(other, -jnp.inf, similarity).max(1)


def _blocks(x, block):
  """[B, ...] -> [B/b, b, ...], block i holding rows i, i + B/b, ...: sharded rows stay in place."""
  return x.reshape(block, -1, *x.shape[1:]).swapaxes(0, 1)


def _rows(x):
  """Undoes `_blocks`: [B/b, b, ...] -> [B, ...]."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _by_block(f, block, *rows):
  """`f` of one block of rows after the other, stacked; the backward pass makes each block again."""
  if block is None or block == len(rows[0]):
    return jax.tree.map(lambda x: x[None], f(*rows))
  one = jax.checkpoint(lambda xs: f(*xs), prevent_cse=False)
  return lax.map(one, tuple(_blocks(x, block) for x in rows))
