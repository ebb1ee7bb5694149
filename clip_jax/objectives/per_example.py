"""State with one entry for each record of the training data, indexed by the batch's "index".

The arrays are variables of the objective that are not trained: the loss updates them, they are part
of the train state and of its checkpoints, and their records are sharded over all devices that share
the batch (see `partition.state_shardings`).
"""

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

# Lengths are rounded up to a multiple of this, so that any usual number of devices divides them.
_MULTIPLE, _MULTIPLE_OF_MANY, _MANY = 64, 4096, 2**20


class PerExample(nnx.Module):
  """Arrays of one number per record, each an attribute.

  An objective stores it as `self.per_example`; the name decides how the arrays are sharded.
  """

  def __init__(self, examples: int, **initial: float):
    """Makes the arrays, float32 [n], n >= `examples`.

    Args:
      examples: number of records.
      **initial: the initial value of each array, by name.
    """
    multiple = _MULTIPLE_OF_MANY if examples >= _MANY else _MULTIPLE
    length = -(-examples // multiple) * multiple
    for name, value in initial.items():
      setattr(self, name, nnx.Variable(jnp.full(length, value, jnp.float32)))

  def read(self, name: str, index: jax.Array) -> jax.Array:
    """Returns the values of some records, int [B] -> float32 [B], without a gradient."""
    return lax.stop_gradient(getattr(self, name)[...].at[index].get(mode="promise_in_bounds"))

  def write(self, name: str, index: jax.Array, values: jax.Array) -> None:
    """Replaces the values of some records; those of equal indices must be equal."""
    variable = getattr(self, name)
    new = lax.stop_gradient(values)
    variable[...] = variable[...].at[index].set(new, mode="promise_in_bounds")

  def fill(self, name: str, value: float) -> None:
    """Gives all records the same value."""
    variable = getattr(self, name)
    variable[...] = jnp.full_like(variable[...], value)


def mean_by_index(index: jax.Array, x: jax.Array) -> jax.Array:
  """Replaces each entry by the mean over the rows with the same index: int [B], [B] -> [B]."""
  segment = _segments(index)
  add = lambda values: jax.ops.segment_sum(values, segment, len(index))[segment]
  return add(x) / add(jnp.ones_like(x))


def log_mean_by_index(index: jax.Array, log_x: jax.Array) -> jax.Array:
  """Like `mean_by_index`, for numbers given by their logarithms."""
  segment = _segments(index)
  largest = jax.ops.segment_max(log_x, segment, len(index))[segment]
  return largest + jnp.log(mean_by_index(index, jnp.exp(log_x - largest)))


def _segments(index):
  """Numbers the distinct indices of a batch from 0, in their order; sorting needs no [B, B]."""
  order = jnp.argsort(index, stable=True)
  ordered = index[order]
  number = jnp.cumsum(jnp.concatenate([jnp.zeros(1, int), (ordered[1:] != ordered[:-1]) * 1]))
  return jnp.zeros_like(order).at[order].set(number)
