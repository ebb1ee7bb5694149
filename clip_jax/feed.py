"""Batches for the loop: on the device one step ahead, with the damaged records counted."""

from collections.abc import Iterator
import time

from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.selection import places_in
from clip_jax.errors import UserError
from clip_jax.parts import Parts
from clip_jax.report import Report
from clip_jax.shares import placed, rows_of

DAMAGED_SHARE = 0.01
DAMAGED_AFTER = 1000  # Examples to see before the share of damaged ones means anything.


class Feed:
  """Batches on the device, one ahead of the step; counts the wait and the damaged records.

  Attributes:
    batch: the next batch, global arrays.
    rows, index: which rows of it lie on this process's devices, and their records' places in the
      source; NumPy.
    waited: seconds waited for the host pipeline so far.
    damaged: where records that could not be read lie in the source, under all selections from it.
  """

  def __init__(self, parts: Parts, start: int):
    data = parts.data
    self.mesh, self.inputs, self.source = parts.mesh, parts.learner.objective.inputs, data.source
    self.batch_size = data.batch_size
    self.rows = rows_of(parts.mesh.local_devices, data.batch_size, parts.mesh)
    self.batches: Iterator = iter(batches(
        Examples(data.source, data.views, seed=parts.config.seed), batch_size=data.batch_size,
        start=start, rows=self.rows, threads=data.threads, workers=data.workers))
    self.waited, self.seen, self.replaced, self.damaged = 0.0, 0, 0, set()
    self.advance()

  def advance(self) -> None:
    """Makes `batch` the next one."""
    begun = time.perf_counter()
    batch = next(self.batches)
    self.waited += time.perf_counter() - begun
    self.index = batch["index"]
    self.batch = placed({name: batch[name] for name in self.inputs}, self.rows, self.batch_size,
                        self.mesh)
    replaced = batch["replaced"] > 0
    self.seen, self.replaced = self.seen + len(replaced), self.replaced + int(replaced.sum())
    if replaced.any():
      self.damaged.update(places_in(self.source, batch["damaged"][replaced]).tolist())

  def check(self) -> None:
    """Raises when too many of the records seen were damaged."""
    if self.seen >= DAMAGED_AFTER and self.replaced > DAMAGED_SHARE * self.seen:
      raise UserError(
          f"{self.replaced} of {self.seen} records could not be read, more than "
          f"{DAMAGED_SHARE:.0%}; they are number {self.list_damaged(50)} of the source. Repair or "
          "leave them out, then start again: the run goes on from its last checkpoint.")

  def list_damaged(self, most: int) -> str:
    """The places of the first `most` damaged records, and how many there are beside them."""
    first, rest = sorted(self.damaged)[:most], len(self.damaged) - most
    return ", ".join(map(str, first)) + (f" and {rest} more" if rest > 0 else "")

  def report_damage(self, report: Report) -> None:
    """Says at the end which records were replaced."""
    if self.damaged:
      report.note(f"{len(self.damaged)} damaged records were replaced by others, {self.replaced} "
                  f"times in {self.seen}; they are number {self.list_damaged(20)} of the source.")
