"""Prefetching of batches to the device, one step ahead of the training loop."""

import time
from typing import Any

from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.selection import base_indices_of
from clip_jax.errors import UserError
from clip_jax.parallel.placement import batch_sharding, rows_of_devices, to_global
from clip_jax.training.metrics import MetricWriter
from clip_jax.training.setup import TrainSetup

DAMAGED_SHARE = 0.01
DAMAGED_AFTER = 1000  # Examples needed before the share of damaged ones is meaningful.


class Prefetcher:
  """Prefetches one batch to the device, and counts waiting time and damaged records.

  Attributes:
    batch: the next batch, as global arrays.
    rows: rows of the batch that are on this process's devices, as a NumPy array.
    index: indices in the source of the records in these rows, as a NumPy array.
    waited: seconds spent waiting for the host pipeline so far.
    damaged: indices of unreadable records in the underlying source, below any subset of it.
  """

  def __init__(self, setup: TrainSetup, start: int):
    data = setup.data
    self.mesh, self.source = setup.mesh, data.source
    self.dtypes = {name: x.dtype for name, x in setup.batch.items()}
    self.batch_size = data.batch_size
    self.rows = rows_of_devices(setup.mesh.local_devices, data.batch_size, setup.mesh)
    self.batches: Any = batches(
      Examples(data.source, data.views, seed=setup.config.seed),
      batch_size=data.batch_size,
      start=start,
      seen=setup.history.samples(start),
      rows=self.rows,
      threads=data.threads,
      workers=data.workers,
    )
    self.waited, self.seen, self.replaced, self.damaged = 0.0, 0, 0, set()
    try:
      self.advance()
    except BaseException:
      self.close()
      raise

  def advance(self) -> None:
    """Replaces `batch` with the next one."""
    begun = time.perf_counter()
    batch = next(self.batches)
    self.waited += time.perf_counter() - begun
    self.index = batch["index"]
    self.batch = to_global(
      # Only `index` changes its dtype: the host has it in 64 bits.
      {name: batch[name].astype(dtype, copy=False) for name, dtype in self.dtypes.items()},
      batch_sharding(self.mesh),
      rows=self.rows,
      batch_size=self.batch_size,
    )
    replaced = batch["replaced"] > 0
    self.seen, self.replaced = self.seen + len(replaced), self.replaced + int(replaced.sum())
    if replaced.any():
      self.damaged.update(base_indices_of(self.source, batch["damaged"][replaced]).tolist())

  def close(self) -> None:
    """Ends the threads and worker processes that prepare batches."""
    self.batches.close()

  def check(self) -> None:
    """Raises UserError if too many of the records seen so far were damaged."""
    if self.seen >= DAMAGED_AFTER and self.replaced > DAMAGED_SHARE * self.seen:
      raise UserError(
        f"{self.replaced} of {self.seen} records could not be read, more than "
        f"{DAMAGED_SHARE:.0%}; their indices in the source: {self.list_damaged(50)}. Repair or "
        "remove them, then rerun the command to resume from the last checkpoint."
      )

  def list_damaged(self, most: int) -> str:
    """Returns the indices of the first `most` damaged records, and the number of further ones."""
    first, rest = sorted(self.damaged)[:most], len(self.damaged) - most
    return ", ".join(map(str, first)) + (f" and {rest} more" if rest > 0 else "")

  def report_damage(self, report: MetricWriter) -> None:
    """Prints which records were replaced because they were damaged."""
    if self.damaged:
      report.note(
        f"{len(self.damaged)} damaged records were replaced by others, {self.replaced} "
        f"times in {self.seen}; their indices in the source: {self.list_damaged(20)}."
      )
