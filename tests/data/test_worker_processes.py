"""Worker processes: the order of their batches, and what happens when one of them dies."""

import multiprocessing
import os
from pathlib import Path
import signal
import socket
import threading
import time

import numpy as np
import pytest

from clip_jax.data import worker_processes
from clip_jax.data.worker_processes import WorkerBatches
from clip_jax.errors import UserError
from numbered_batches import large, numbered, short

SHARED_MEMORY = Path("/dev/shm")


def shared_memory():
  return set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.exists() else set()


def test_batches_come_in_order_and_unchanged_until_an_error():
  stream = WorkerBatches(short, 2)
  made = [next(stream) for _ in range(3)]
  assert [batch["number"].tolist() for batch in made] == [[i] * 10 for i in range(3)]
  processes = [int(batch["process"][0]) for batch in made]
  assert processes[0] == processes[2] != processes[1] and os.getpid() not in processes
  expected = next(numbered(0, 1))
  assert list(made[0]) == list(expected)
  for name in ("transposed", "scalar", "none", "text"):
    assert made[0][name].dtype == expected[name].dtype
    np.testing.assert_array_equal(made[0][name], expected[name], strict=True)
  with pytest.raises(UserError, match="the source is empty"):
    next(stream)
  with pytest.raises(StopIteration):
    next(stream)


def test_worker_killed_while_it_sends_is_named_and_nothing_is_left():
  before = shared_memory()
  stream = WorkerBatches(large, 2)
  processes = [int(next(stream)["process"][0]) for _ in range(2)]
  os.kill(processes[1], signal.SIGTERM)  # Only the parent acts on this one.
  next(stream)
  os.kill(processes[1], signal.SIGKILL)
  begun = time.monotonic()
  message = (
    rf"^Worker 1 of 2 \(pid {processes[1]}\), .* was killed by signal 9 \(SIGKILL\), perhaps "
    r"for lack of memory. Rerun the command to resume .* \(--config.data.workers\)\.$"
  )
  with pytest.raises(UserError, match=message):
    for _ in range(10_000):
      next(stream)
  assert time.monotonic() - begun < 20
  assert not multiprocessing.active_children()
  assert shared_memory() == before


def test_error_that_cannot_be_pickled_arrives_as_its_traceback():
  error = ValueError("odd")
  error.lock = threading.Lock()
  receiver, sender = socket.socketpair()
  with receiver, sender:
    worker_processes._send_error(sender, error)
    received = worker_processes._receive(receiver)
  assert isinstance(received, RuntimeError) and "ValueError: odd" in str(received)
