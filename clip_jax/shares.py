"""Which rows of a batch a process holds, and those rows as parts of global arrays."""

from typing import Any

import jax
import numpy as np

from clip_jax import sharding


def rows_of(devices: Any, batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """int64 [b], ascending: the rows of a batch that lie on some of a mesh's devices.

  The order of a mesh's devices follows the wires of the machine, so the rows of one host need not
  be neighbours; and hosts that share rows (along an axis that does not split the batch) read the
  same ones.
  """
  where = sharding.rows(mesh).devices_indices_map((batch_size,))
  held = [np.arange(batch_size)[where[device][0]] for device in devices]
  return np.unique(np.concatenate(held))


def placed(batch: dict[str, np.ndarray], rows: np.ndarray, batch_size: int,
           mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """The rows of a batch that this process holds as parts of global arrays [B, ...].

  Args:
    batch: arrays [b, ...].
    rows: which they are, of `rows_of` this process's devices.
    batch_size: B.
  """
  def one(x):
    def part(index):
      begin, end, _ = index[0].indices(batch_size)
      begin, end = np.searchsorted(rows, (begin, end))
      return x[begin:end]
    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding.rows(mesh), part)
  return {name: one(x) for name, x in batch.items()}
