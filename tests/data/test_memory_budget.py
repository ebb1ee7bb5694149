"""Tests of the bound on memory that threads hold at the same time."""

from concurrent.futures import ThreadPoolExecutor
import gc
import os
import subprocess
import sys
import threading
import time

import pytest

from clip_jax.data.memory_budget import MemoryBudget


def held_at_most(budget, sizes, threads=8):
  """Lets threads hold `sizes` for a moment and returns the largest sum."""
  most, now, lock = 0, 0, threading.Lock()

  def work(size):
    nonlocal most, now
    memory = budget.take(size)
    with lock:
      now += size
      most = max(most, now)
    time.sleep(0.002)
    with lock:
      now -= size
    del memory

  with ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, sizes))
  return most


def test_threads_together_stay_below_the_limit():
  budget = MemoryBudget(100)
  assert 60 <= held_at_most(budget, [30, 20, 10] * 30) <= 100
  assert budget.used == 0


def test_what_exceeds_the_limit_runs_alone():
  budget = MemoryBudget(100)
  assert held_at_most(budget, [250, 10, 10, 10] * 10) == 250
  assert budget.used == 0


def test_a_large_request_is_not_overtaken_forever():
  budget = MemoryBudget(100)
  first, order = budget.take(50), []

  def take(size):
    budget.take(size)
    order.append(size)

  threads = []
  for size in (100, 10, 20):
    threads.append(threading.Thread(target=take, args=(size,)))
    threads[-1].start()
    time.sleep(0.1)
  assert not order  # 10 and 20 would fit, but wait for their turn.
  del first
  for thread in threads:
    thread.join(5)
  assert order[0] == 100 and sorted(order) == [10, 20, 100]


def test_a_thread_that_holds_memory_never_waits_for_more():
  budget = MemoryBudget(100, patience=1000)
  with ThreadPoolExecutor(8) as pool:  # Would deadlock if each waited for the others.
    took = pool.map(lambda _: len([budget.take(60) for _ in range(3)]), range(50), timeout=30)
    assert list(took) == [3] * 50
  assert budget.used == 0


def test_memory_that_is_never_freed_delays_others_but_does_not_stop_them():
  budget = MemoryBudget(100, patience=0.3)
  kept = budget.take(90)
  begun = time.monotonic()
  with ThreadPoolExecutor(1) as pool:
    pool.submit(budget.take, 50).result(timeout=10)
  assert 0.25 < time.monotonic() - begun < 5
  assert kept.size == 90


def test_shrinking_lets_others_in_and_the_garbage_collector_may_free():
  budget = MemoryBudget(100, patience=1000)
  memory = budget.take(90)
  with ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(budget.take, 50)
    time.sleep(0.1)
    assert not waiting.done()
    memory.shrink(40)
    waiting.result(timeout=5)
  cycle = [memory]
  cycle.append(cycle)
  del memory, cycle, waiting
  gc.collect()
  assert budget.used == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_with_an_empty_budget():
  code = """
import os
from clip_jax.data.memory_budget import MemoryBudget
budget = MemoryBudget(100)
memory = budget.take(100)
child = os.fork()
if not child:
  os._exit(0 if budget.used == 0 and budget.take(100).size == 100 else 1)
assert os.waitpid(child, 0)[1] == 0 and budget.used == 100
"""
  subprocess.run([sys.executable, "-c", code], check=True)
