"""Bounds the memory that threads use at the same time."""

from collections import Counter, deque
import ctypes
import os
import threading
import time

# glibc keeps freed blocks for the thread that freed them: 250 MB each after a large PNG.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def return_freed_memory() -> None:
  """Returns freed memory to the operating system where the allocator would keep it; takes 0.1 s."""
  if _trim:
    _trim(0)


class MemoryBudget:
  """Lets a thread take memory as soon as that of all threads stays below a limit.

  Threads are served in the order in which they ask. So that none waits forever, a thread does not
  wait if it holds memory already, if nothing is held at all (one image may exceed the limit), or
  after nothing has been freed for a while.
  """

  def __init__(self, limit: int, *, patience: float = 30.0):
    """Creates a budget of `limit` bytes; `patience` is the longest wait in vain, in seconds."""
    self.limit, self.patience = limit, patience
    self.reset()
    if hasattr(os, "register_at_fork"):
      os.register_at_fork(after_in_child=self.reset)

  def reset(self) -> None:
    """Forgets everything held, for example by the threads that a forked process does not have."""
    self._used, self._by_thread, self._waiting = 0, Counter(), deque()
    self._freed: deque[tuple[int, int, bool]] = deque()
    self._changed = threading.Condition(threading.Lock())

  @property
  def used(self) -> int:
    """Bytes held now."""
    with self._changed:
      self._collect()
      return self._used

  def take(self, size: int) -> "Memory":
    """Waits for `size` bytes and returns them; they are freed with the last reference."""
    thread, place = threading.get_ident(), object()
    with self._changed:
      self._collect()
      if not self._by_thread[thread] and (self._waiting or not self._fits(size)):
        self._waiting.append(place)
        try:
          self._wait(place, size)
        finally:
          self._waiting.remove(place)
          self._changed.notify_all()
      self._used += size
      self._by_thread[thread] += 1
    return Memory(self, thread, size)

  def _wait(self, place, size):
    since, used = time.monotonic(), self._used
    while not (self._waiting[0] is place and self._fits(size)):
      # `free` may fail to notify, so look again soon.
      self._changed.wait(0.05)
      self._collect()
      if self._used < used:
        since = time.monotonic()
      used = self._used
      if time.monotonic() - since > self.patience:
        return

  def _fits(self, size):
    return not self._used or self._used + size <= self.limit

  def free(self, size: int, thread: int, *, last: bool) -> None:
    """Gives back `size` bytes that `thread` took; `last` if it keeps none of that image."""
    # Called by the garbage collector too, perhaps in the middle of `take`: a deque needs no lock.
    self._freed.append((size, thread, last))
    if self._changed.acquire(blocking=False):
      self._changed.notify_all()
      self._changed.release()

  def _collect(self):
    """Subtracts what was freed since the last call."""
    while self._freed:
      size, thread, last = self._freed.popleft()
      self._used -= size
      if last:
        self._by_thread[thread] -= 1
        if not self._by_thread[thread]:
          del self._by_thread[thread]


class Memory:
  """Memory taken from a budget, freed when this object is deleted.

  Attributes:
    size: number of bytes.
  """

  def __init__(self, budget: MemoryBudget, thread: int, size: int):
    self._budget, self._thread, self.size = budget, thread, size

  def shrink(self, size: int) -> None:
    """Frees all but `size` bytes."""
    if size < self.size:
      self._budget.free(self.size - size, self._thread, last=False)
      self.size = size

  def __del__(self) -> None:
    self._budget.free(self.size, self._thread, last=True)
