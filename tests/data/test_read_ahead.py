"""Mapping a function over items in threads: order, bounds, errors and closing."""

import contextlib
import itertools
import threading
import time

import pytest

from clip_jax.data.read_ahead import batched, map_ahead


def test_results_are_in_the_order_of_the_items():
  def slow_if_even(i):
    time.sleep(0.005 * (i % 2 == 0))
    return i * i

  found = list(map_ahead(slow_if_even, range(40), threads=4, ahead=8))
  assert found == [i * i for i in range(40)]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_exactly_the_next_items_are_submitted(ahead):
  started = []
  with contextlib.closing(
    map_ahead(started.append, itertools.count(), threads=1, ahead=ahead)
  ) as results:
    for taken in range(1, 4):
      next(results)
      wait_for(lambda: len(started) == taken + ahead)
      time.sleep(0.01)
      assert started == list(range(taken + ahead))


def wait_for(condition, seconds=5.0):
  ends = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < ends
    time.sleep(0.001)


def test_items_are_processed_by_as_many_threads():
  together = threading.Barrier(3, timeout=5)  # Broken unless three calls run at a time.
  list(map_ahead(lambda _: together.wait(), range(6), threads=3, ahead=5))


def test_an_exception_is_raised_when_its_result_is_due():
  results = map_ahead(lambda i: 1 / (3 - i), range(10), threads=2, ahead=9)
  assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_an_exception_while_iterating_the_items_is_raised():
  def items():
    yield 1
    raise KeyError("broken")

  with pytest.raises(KeyError, match="broken"):
    list(map_ahead(str, items(), threads=1, ahead=4))


def test_closing_drops_the_items_that_are_not_started_and_ends_the_threads():
  go, started, before = threading.Event(), [], threading.active_count()

  def wait(i):
    started.append(i)
    if i:
      go.wait(5)

  results = map_ahead(wait, range(100), threads=2, ahead=50)
  next(results)
  wait_for(lambda: len(started) == 3)
  threading.Timer(0.05, go.set).start()
  results.close()
  assert started == [0, 1, 2]
  wait_for(lambda: threading.active_count() == before)


def test_batches_have_all_items_in_order():
  assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
  assert list(batched([], 3)) == []
