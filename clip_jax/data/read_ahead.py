"""Reads and decodes records in threads before they are needed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import itertools
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
  function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int
) -> Generator[R, None, None]:
  """Applies a function to items in threads and yields the results in the order of the items.

  When the consumer takes a result, the next `ahead` items are already submitted. So to prepare a
  batch while the previous one is processed, set `ahead` to the batch size. At most `ahead` + 1
  results are in memory. An exception is raised when the result of its item is due.

  Wrap the iterator in `contextlib.closing` unless it is exhausted: closing it drops the items that
  no thread has started.

  Args:
    function: called once for each item, in any thread.
    items: iterated in the consumer's thread; may be infinite.
    threads: number of threads.
    ahead: number of items submitted beyond the one whose result is taken, at least 0.
  """
  pool, pending = ThreadPoolExecutor(threads), deque()
  try:
    for item in items:
      pending.append(pool.submit(function, item))
      if len(pending) > ahead:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def batched(items: Iterable[T], n: int) -> Iterator[list[T]]:
  """Yields lists of n consecutive items; the last one may be shorter."""
  items = iter(items)
  while batch := list(itertools.islice(items, n)):
    yield batch
