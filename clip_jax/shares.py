"""The rows of a batch that a process holds, and global arrays made from them."""

from typing import Any

import jax
import numpy as np

from clip_jax import sharding


def rows_of(devices: Any, batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """Returns the rows of a batch that are stored on some of a mesh's devices: int64 [b], ascending.

  The order of the devices in a mesh follows the interconnect, so the rows of one host need not be
  contiguous. Hosts that share rows (along an axis that does not shard the batch) read the same
  ones.
  """
  where = sharding.rows(mesh).devices_indices_map((batch_size,))
  held = [np.arange(batch_size)[where[device][0]] for device in devices]
  return np.unique(np.concatenate(held))


def placed(batch: dict[str, np.ndarray], rows: np.ndarray, batch_size: int,
           mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Assembles global arrays [B, ...] from the rows of a batch that this process holds.

  Args:
    batch: arrays [b, ...].
    rows: indices of these rows in the global batch, from `rows_of` this process's devices.
    batch_size: B.
    mesh: shards the rows over its batch axes.
  """
  def one(x):
    def part(index):
      begin, end, _ = index[0].indices(batch_size)
      begin, end = np.searchsorted(rows, (begin, end))
      return x[begin:end]
    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding.rows(mesh), part)
  return {name: one(x) for name, x in batch.items()}
