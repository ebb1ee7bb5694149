"""From records to batches: one endless order, the same on any number of hosts, threads, processes.

The example at a position is a function of (seed, position), and the batch at a step has those of
positions step * B to (step + 1) * B, so a step number is all there is to save.
"""

from collections.abc import Iterator
import sys
from typing import Any, Self
import weakref

from absl import flags
import grain
import numpy as np

from clip_jax.data.permutation import mixed, permuted
from clip_jax.data.selection import places_in
from clip_jax.errors import UserError
from clip_jax.interfaces import Source
from clip_jax.interrupts import deaf

_MASK = 2**64 - 1
_STEPS = 64  # Whose orders are remembered; more than there are threads that make batches.


class Examples:
  """The endless sequence of examples: epoch after epoch, each in a new order, through `views`.

  A record that cannot be read or decoded gives its place to the one half an epoch further on: the
  next one would be twice in the same batch.
  """

  def __init__(self, source: Source, views: Any, *, seed: int = 0, tries: int = 100):
    """Reads nothing yet.

    Args:
      source: the records.
      views: (record, rng) -> dict of arrays.
      seed: of the order and of all that is random in the views, at least 0.
      tries: unreadable records in a row after which it gives up.

    Raises:
      UserError: no records, or a negative seed.
    """
    if len(source) < 1:
      raise UserError(f"{type(source).__name__} has no records. Check its path or split.")
    if seed < 0:
      raise UserError(f"seed {seed} is negative. Set one from 0 on.")
    self.source, self.views, self.seed, self.tries = source, views, seed, tries

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of what an example holds; `views` has its own."""
    return (*self.views.outputs, "index", "replaced", "damaged")

  def __len__(self) -> int:
    return sys.maxsize

  def index(self, position: int) -> int:
    """The place in the source of the record at `position`, if it can be read."""
    epoch, i = divmod(position, len(self.source))
    return permuted(i, len(self.source), seed=mixed(mixed(self.seed & _MASK) + epoch & _MASK))

  def indices(self, positions: np.ndarray) -> np.ndarray:
    """int64 [n]: `index` of many positions at once, int [n]."""
    epochs, i = np.divmod(np.asarray(positions, np.uint64), np.uint64(len(self.source)))
    found = np.empty(len(i), np.int64)
    for epoch in np.unique(epochs):
      seed = mixed(mixed(self.seed & _MASK) + int(epoch) & _MASK)
      found[epochs == epoch] = permuted(i[epochs == epoch], len(self.source), seed=seed)
    return found

  def __getitem__(self, position: int) -> dict[str, Any]:
    """What `views` makes of the record, and besides.

      index: int64 [], the record's place in the source.
      replaced: int32 [], unreadable records tried before this one.
      damaged: int64 [], the place of the first of these; -1 if there were none.

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
        raise  # A wrong setting is wrong for every record.
      except Exception as error:  # Whatever a reader or a decoder throws at broken bytes.
        last = error
        damaged = index if damaged < 0 else damaged
        continue
      return {**example, "index": np.int64(index), "replaced": np.int32(replaced),
              "damaged": np.int64(damaged)}
    raise UserError(
        f"{self.tries} records in a row cannot be read (from position {position} on, the first is "
        f"record {damaged}); the last: {last!r}. Check what the source holds.") from last


def batches(examples: Examples, *, batch_size: int, start: int = 0, host: int = 0, hosts: int = 1,
            rows: np.ndarray | None = None, threads: int = 16,
            workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
  """This host's rows of the global batches, without end.

  Host h has the rows h * B / hosts to (h + 1) * B / hosts, or those that `rows` says. Nothing is
  read before `start`. The rows of a batch are in the order of the records in the source, so that a
  host reads neighbours one after the other, from its own part of the files.

  Args:
    examples: the endless sequence.
    batch_size: B, of the global batch.
    start: step of the first batch.
    host, hosts: this one, and how many.
    rows: int [b], this host's rows, when its devices do not hold one even share after the other.
    threads: that make batches ahead, in each process; 0 makes each one when it is asked for.
    workers: processes that do so; 0 is this one.

  Raises:
    UserError: the batch cannot be split over the hosts, or a number is out of its range.
  """
  if hosts < 1 or not 0 <= host < hosts:
    raise UserError(f"host {host} is not one of {hosts} hosts, counted from 0.")
  if batch_size < 1 or batch_size % hosts:
    near = [n * hosts for n in (batch_size // hosts, batch_size // hosts + 1) if n]
    raise UserError(f"batch_size {batch_size} cannot be split over {hosts} hosts; nearest that can "
                    f"be: {', '.join(map(str, near))}. Set --config.data.batch_size.")
  for name, value in (("start", start), ("threads", threads), ("workers", workers)):
    if value < 0:
      raise UserError(f"{name} {value} is negative.")
  if rows is None:
    rows = np.arange(batch_size).reshape(hosts, -1)[host]
  ours = grain.MapDataset.source(_Sorted(examples, batch_size, rows)).batch(len(rows))[start:]
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
  ours = ours.to_iter_dataset(ahead)
  if not workers:
    return iter(ours)
  _allow_workers()
  return _FromWorkers(iter(ours.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))))


class _Sorted:
  """Some rows of every batch, in the order in which the batch's records lie in the files."""

  def __init__(self, examples: Examples, batch_size: int, rows: np.ndarray):
    self._examples, self._batch_size, self._rows, self._steps = examples, batch_size, rows, {}

  def __len__(self) -> int:
    return sys.maxsize // 2  # Grain adds a batch to it, to round up.

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    step, row = divmod(int(row), len(self._rows))
    positions = self._steps.get(step)
    if positions is None:
      positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
      places = places_in(self._examples.source, self._examples.indices(positions))
      positions = positions[np.argsort(places, kind="stable")]
      if len(self._steps) >= _STEPS:  # Threads may do this at once: what one drops, it makes again.
        self._steps.clear()
      self._steps[step] = positions
    return self._examples[positions[self._rows[row]]]


def _allow_workers():
  """Lets Grain start processes outside of `absl.app.run`: in pytest, in notebooks."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


class _FromWorkers:
  """Iterator over what Grain's processes make, that ends them when it ends or Python does."""

  def __init__(self, batches: Iterator[dict[str, np.ndarray]]):
    # In a list, so that nothing of Grain's is left to be taken down when Python exits, which it
    # would complain about at length. So it would about arrays in shared memory: hence the copies.
    self._batches = [batches]
    self._started = False
    self.close = weakref.finalize(self, _end, self._batches)

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if not self._batches:
      raise StopIteration
    make = lambda: next(self._batches[0])
    batch = make() if self._started else deaf(make)  # The first time starts the workers.
    self._started = True
    return {name: np.array(values) for name, values in batch.items()}


def _end(batches):
  batches.pop().close()
