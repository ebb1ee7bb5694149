"""Processes that prepare batches, each of which sends them through a socket of its own.

The socket is all that a worker shares with its parent. A worker that dies, at any moment, closes
it, and so does a parent that dies: nobody waits for a lock that a dead process holds, and no named
shared memory is left behind.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import multiprocessing
from multiprocessing import util
import os
import pickle
import queue
import signal
import socket
import threading
import time
import traceback
from typing import Any, Self

import cloudpickle
import numpy as np

from clip_jax.errors import UserError
from clip_jax.parallel.signals import shield_from_sigint

Batch = dict[str, np.ndarray]

_POLL = 1.0  # Seconds between two looks at whether a worker that is waited for still runs.
_GRACE = 1.0  # Seconds that workers have to end by themselves.
_LENGTH = 8  # Bytes of the length in front of a header.


class WorkerBatches:
  """Iterator over batches that several processes prepare, in order, ahead of their use."""

  def __init__(self, make: Callable[[int, int], Iterator[Batch]], workers: int):
    """Starts nothing yet: taking the first batch does.

    Args:
      make: (worker, workers) -> iterator over the batches worker, worker + workers and so on;
        called in the worker, so it must be picklable.
      workers: number of processes, at least 1.
    """
    self._make, self._n, self._taken = make, workers, 0
    self._workers: list[_Worker] = []
    # Unlike weakref.finalize, this runs before multiprocessing waits for its processes at exit.
    self.close = util.Finalize(self, _close, args=(self._workers,), exitpriority=10)

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> Batch:
    """Returns the next batch.

    Raises:
      UserError: a worker was killed, or a mistake in the config.
      StopIteration: the iterator is closed, or its batches have ended.
    """
    if not self.close.still_active():
      raise StopIteration
    if not self._workers:
      # A terminal sends Ctrl-C to the whole group of processes, and a cluster SIGTERM. The parent
      # saves after either, so it must not lose its workers before.
      shield_from_sigint(self._start, signal.SIGTERM)
    worker = self._workers[self._taken % self._n]
    self._taken += 1
    try:
      return worker.take()
    except BaseException as error:
      if not isinstance(error, KeyboardInterrupt):
        self.close()
      raise

  def _start(self):
    content = cloudpickle.dumps(self._make)
    self._workers.extend(_Worker(content, i, self._n) for i in range(self._n))


class _Worker:
  """One process, and the thread that receives its batches."""

  def __init__(self, content: bytes, number: int, workers: int):
    self.name = f"Worker {number} of {workers}"
    self._socket, other = socket.socketpair()
    self._process = multiprocessing.get_context("spawn").Process(
      target=_work, args=(other, content, number, workers), daemon=True
    )
    self._process.start()
    other.close()  # The worker has the only copy now, so that its end closes the socket.
    self.pid = self._process.pid
    self._room = threading.Semaphore(1)  # One batch is received ahead.
    self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._closing = False
    threading.Thread(target=self._receive, name=self.name, daemon=True).start()

  def _receive(self):
    while True:
      self._room.acquire()
      if self._closing:
        return
      try:
        item = _receive(self._socket)
      except (OSError, EOFError):
        item = None
      except Exception as error:  # What the worker raised can be of any class.
        item = error
      self._received.put(item)
      if not isinstance(item, dict):
        return

  def take(self) -> Batch:
    """Waits for the next batch of this worker."""
    item = None
    while True:
      try:
        item = self._received.get(timeout=_POLL)
        break
      except queue.Empty:
        # A process that the worker has started may hold its socket open.
        if self._process.exitcode is not None and self._received.empty():
          break
    if isinstance(item, dict):
      self._room.release()
      return item
    if isinstance(item, StopIteration):
      raise item
    if item is not None:
      raise item
    self._process.join(_GRACE)
    raise UserError(
      f"{self.name} (pid {self.pid}), which prepares batches, {_ending(self._process.exitcode)}"
      ". Rerun the command to resume from the last checkpoint; fewer workers need less memory "
      "(--config.data.workers)."
    )

  def stop(self) -> None:
    """Closes the socket, so that the worker ends as soon as it sends."""
    self._closing = True
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._room.release()

  def end(self, deadline: float) -> None:
    """Waits for the worker until a time of `time.monotonic`, then kills it."""
    self._process.join(max(0.0, deadline - time.monotonic()))
    if self._process.exitcode is None:
      self._process.kill()
      self._process.join()
    self._socket.close()


def _close(workers: Sequence[_Worker]) -> None:
  for worker in workers:
    worker.stop()
  deadline = time.monotonic() + _GRACE
  for worker in workers:
    worker.end(deadline)


def _ending(code: int | None) -> str:
  """How a process ended."""
  if code is None:
    return "does not answer any more"
  if code >= 0:
    return f"ended with exit code {code}; see above for the reason"
  with contextlib.suppress(ValueError):
    name = signal.Signals(-code).name
    memory = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return f"was killed by signal {-code} ({name}){memory}"
  return f"was killed by signal {-code}"


def _work(connection: socket.socket, content: bytes, number: int, workers: int) -> None:
  """The main function of a worker: sends its batches until nobody receives them any more."""
  for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, signal.SIG_IGN)
  try:
    try:
      for batch in cloudpickle.loads(content)(number, workers):
        _send(connection, "batch", batch)
      _send_error(connection, StopIteration())
    except OSError as error:
      if not _is_closed(connection):
        _send_error(connection, error)
    except Exception as error:
      _send_error(connection, error)
  finally:
    # Threads that read ahead must not delay the end.
    os._exit(0)


def _is_closed(connection):
  """Whether the parent has closed its end, or has died."""
  try:
    return connection.recv(1, socket.MSG_DONTWAIT) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True


def _send(connection, kind, values):
  """Sends a dict of arrays: their dtypes and shapes in a header, then their bytes."""
  arrays = {n: np.ascontiguousarray(x) for n, x in values.items() if _is_plain(x)}
  shapes = {n: (x.dtype, np.shape(values[n])) for n, x in arrays.items()}
  others = {n: x for n, x in values.items() if n not in arrays}
  header = cloudpickle.dumps((kind, list(values), shapes, others))
  connection.sendall(len(header).to_bytes(_LENGTH, "little") + header)
  for x in arrays.values():
    connection.sendall(x.reshape(-1).view(np.uint8).data)


def _is_plain(x):
  return isinstance(x, np.ndarray) and not x.dtype.hasobject and x.nbytes > 0


def _send_error(connection, error):
  if not isinstance(error, (UserError, StopIteration)):
    error.add_note("In a worker:\n" + "".join(traceback.format_exception(error)))
  try:
    pickle.loads(cloudpickle.dumps(error))
  except Exception:  # An error that holds a file or a lock.
    error = RuntimeError("".join(traceback.format_exception(error)))
  with contextlib.suppress(OSError):
    _send(connection, "error", {"error": error})


def _receive(connection: socket.socket) -> Any:
  """Receives a batch, or the error that ended the worker.

  Raises:
    OSError, EOFError: the worker has died.
  """
  length = int.from_bytes(_read(connection, bytearray(_LENGTH)), "little")
  kind, names, shapes, others = pickle.loads(_read(connection, bytearray(length)))
  if kind == "error":
    return others["error"]
  arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}
  for x in arrays.values():
    _read(connection, x.reshape(-1).view(np.uint8))
  return {name: arrays[name] if name in arrays else others[name] for name in names}


def _read(connection, target):
  """Fills a buffer from a socket, and returns it."""
  view, filled = memoryview(target), 0
  while filled < len(view):
    n = connection.recv_into(view[filled:])
    if not n:
      raise EOFError
    filled += n
  return target
