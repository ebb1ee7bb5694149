"""Shuffles records and batches examples, identically for any number of hosts, threads and workers.

The example at a position is a function of (seed, position), and the batch of a step consists of
positions step * B to (step + 1) * B. The step number is therefore the pipeline's only state, unless
the batch size changes during a run: then it is the number of examples seen.
"""

from collections.abc import Iterator
import functools
import sys
from typing import Any

import numpy as np

from clip_jax.data.permutation import feistel_permute, splitmix64
from clip_jax.data.selection import base_indices_of
from clip_jax.data.worker_processes import WorkerBatches
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_MASK = 2**64 - 1
_CACHED_STEPS = 64  # Cached row orders, one per step; more than the number of prefetching threads.


class Examples:
  """The infinite sequence of examples: epochs of records, each reshuffled, passed through `views`.

  A record that cannot be read or decoded is replaced by the one half an epoch later. The next
  record would not do, because it would appear twice in the same batch.
  """

  def __init__(self, source: Source, views: Any, *, seed: int = 0, tries: int = 100):
    """Checks and stores the settings; reads no records.

    Args:
      source: the records.
      views: (record, rng) -> dict of arrays.
      seed: seed of the order and of all randomness in the views, at least 0.
      tries: maximum number of consecutive unreadable records before raising an error.

    Raises:
      UserError: the source is empty, or the seed is negative.
    """
    if len(source) < 1:
      raise UserError(f"{type(source).__name__} has no records. Check its path or split.")
    if seed < 0:
      raise UserError(f"seed {seed} is negative; it must be at least 0.")
    self.source, self.views, self.seed, self.tries = source, views, seed, tries

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of the entries of an example: those of `views` and three that are added here."""
    return (*self.views.outputs, "index", "replaced", "damaged")

  def __len__(self) -> int:
    return sys.maxsize

  def index(self, position: int) -> int:
    """Returns the index in the source of the record at `position`, ignoring replacements."""
    epoch, i = divmod(position, len(self.source))
    return feistel_permute(
      i, len(self.source), seed=splitmix64(splitmix64(self.seed & _MASK) + epoch & _MASK)
    )

  def indices(self, positions: np.ndarray) -> np.ndarray:
    """Vectorised `index`: positions, int [n] -> indices in the source, int64 [n]."""
    epochs, i = np.divmod(np.asarray(positions, np.uint64), np.uint64(len(self.source)))
    found = np.empty(len(i), np.int64)
    for epoch in np.unique(epochs):
      seed = splitmix64(splitmix64(self.seed & _MASK) + int(epoch) & _MASK)
      found[epochs == epoch] = feistel_permute(i[epochs == epoch], len(self.source), seed=seed)
    return found

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the example at `position`: the entries made by `views`, plus these.

      index: int64 [], index of the record in the source.
      replaced: int32 [], number of unreadable records skipped to find this one.
      damaged: int64 [], index of the first record skipped, -1 if there was none.

    Raises:
      UserError: `tries` records in a row cannot be read, or the views do not fit the source.
    """
    position = int(position)
    damaged = -1
    for replaced in range(self.tries):
      index = self.index(position + replaced * (len(self.source) // 2 + 1))
      rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, position]))
      try:
        example = self.views(self.source[index], rng)
      except UserError:
        raise  # A configuration error affects every record: do not skip it.
      except Exception as error:  # Readers and decoders raise all kinds of errors on broken bytes.
        last = error
        damaged = index if damaged < 0 else damaged
        continue
      return {
        **example,
        "index": np.int64(index),
        "replaced": np.int32(replaced),
        "damaged": np.int64(damaged),
      }
    raise UserError(
      f"{self.tries} records in a row cannot be read, starting with record {damaged} at "
      f"position {position}. The last error was {last!r}. Check the source."
    ) from last


def batches(
  examples: Examples,
  *,
  batch_size: int,
  start: int = 0,
  seen: int | None = None,
  host: int = 0,
  hosts: int = 1,
  rows: np.ndarray | None = None,
  threads: int = 16,
  workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Returns an infinite iterator over this host's rows of the global batches.

  Host h receives rows h * B / hosts to (h + 1) * B / hosts, unless `rows` names others. Starting at
  a later step reads no earlier records. The rows of a batch are sorted by where their records are
  stored, so that each host reads its own part of the files, in order.

  Args:
    examples: the infinite sequence of examples.
    batch_size: B, the global batch size.
    start: step of the first batch.
    seen: number of examples before it; start * batch_size by default, and another number for a run
      whose batch size has changed.
    host: index of this host.
    hosts: number of hosts.
    rows: int [b], the rows of this host, when its devices do not hold one contiguous equal share.
    threads: number of prefetching threads per process; 0 prepares each batch on demand.
    workers: number of worker processes; 0 prepares the batches in this process.

  Raises:
    UserError: the batch cannot be split over the hosts, or an argument is out of range.
  """
  if hosts < 1 or not 0 <= host < hosts:
    raise UserError(f"host {host} is out of range for {hosts} hosts, counted from 0.")
  if batch_size < 1 or batch_size % hosts:
    near = [n * hosts for n in (batch_size // hosts, batch_size // hosts + 1) if n]
    raise UserError(
      f"batch_size {batch_size} cannot be split over {hosts} hosts; nearest valid: "
      f"{', '.join(map(str, near))}. Set --config.data.batch_size."
    )
  seen = start * batch_size if seen is None else seen
  for name, value in (
    ("start", start),
    ("seen", seen),
    ("threads", threads),
    ("workers", workers),
  ):
    if value < 0:
      raise UserError(f"{name} {value} is negative; it must be at least 0.")
  if rows is None:
    rows = np.arange(batch_size).reshape(hosts, -1)[host]
  rows_of_batches = _SortedBatches(examples, batch_size, rows, seen - start * batch_size)
  make = functools.partial(_read_batches, rows_of_batches, start, len(rows), threads)
  return WorkerBatches(make, workers) if workers else make(0, 1)


def _read_batches(source, start, rows, threads, worker, workers):
  """Iterator over every `workers`-th batch from `start + worker` on, read ahead in threads."""
  import grain  # Here, because it takes a second that only training needs.

  dataset = grain.MapDataset.source(source).batch(rows)[start + worker :: workers]
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
  return iter(dataset.to_iter_dataset(options))


class _SortedBatches:
  """Examples of the given rows of every batch, after sorting each batch by record location.

  The batch of a step begins at position step * batch_size + offset.
  """

  def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray, offset: int):
    self._examples, self._batch_size, self._rows = examples, batch_size, rows
    self._offset, self._steps = offset, {}

  def __len__(self) -> int:
    return sys.maxsize // 2  # Leaves room for Grain to add a batch when it rounds up.

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    step, row = divmod(int(row), len(self._rows))
    positions = self._steps.get(step)
    if positions is None:
      begin = step * self._batch_size + self._offset
      positions = np.arange(begin, begin + self._batch_size)
      locations = base_indices_of(self._examples.source, self._examples.indices(positions))
      positions = positions[np.argsort(locations, kind="stable")]
      # Safe without a lock: other threads recompute lost entries.
      if len(self._steps) >= _CACHED_STEPS:
        self._steps.clear()
      self._steps[step] = positions
    return self._examples[positions[self._rows[row]]]
