"""Drops what Orbax and its libraries print when a save fails: the error is raised as well.

They log a traceback of a hundred lines for each array, which would bury the message.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

_LOGGERS = ("absl", "asyncio")
_lock = threading.Lock()
_contexts: list[object] = []  # Those that are open.
_restore: list[Callable[[], None]] = []


@contextlib.contextmanager
def dropped() -> Iterator[None]:
  """Drops the messages while any such context is open; other messages are not affected."""
  context = object()
  with _lock:
    if not _contexts:
      _install()
    _contexts.append(context)
  try:
    yield
  finally:
    _join_threads()
    with _lock:
      _contexts.remove(context)
      if not _contexts:
        while _restore:
          _restore.pop()()


def _join_threads(seconds: float = 10.0) -> None:
  """Waits for Orbax's threads: after a failed save, one may still be about to log its error."""
  ends = time.monotonic() + seconds
  for thread in threading.enumerate():
    if type(thread).__module__.startswith("orbax.") and thread is not threading.current_thread():
      threading.Thread.join(thread, max(0.0, ends - time.monotonic()))


def _install():
  for name in _LOGGERS:
    logger = logging.getLogger(name)
    # absl's logger does not apply filters.
    _replace(logger, "handle", _unless(_is_from_orbax, logger.handle))
  for name in ("excepthook", "unraisablehook"):
    _replace(sys, name, _unless(_is_late_callback, getattr(sys, name)))


def _replace(owner: Any, name: str, value: Any) -> None:
  own = name in vars(owner)
  before = getattr(owner, name)
  setattr(owner, name, value)

  def restore():
    if getattr(owner, name) is not value:  # Somebody else has replaced it since.
      return
    if own:
      setattr(owner, name, before)
    else:
      delattr(owner, name)

  _restore.append(restore)


def _unless(condition, f):
  def filtered(*args):
    if not condition(*args):
      f(*args)

  return filtered


def _is_from_orbax(record):
  """Whether Orbax logs this record now, or its message is about a task of Orbax."""
  # The record has the path of Orbax only if absl has made the logger, so look at the stack.
  frames = traceback.walk_stack(None)
  return "orbax" in record.getMessage() or any(
    f"{os.sep}orbax{os.sep}" in frame.f_code.co_filename for frame, _ in frames
  )


def _is_late_callback(*args):
  """Whether TensorStore has reported a failed write to the event loop of a save that is over."""
  error = args[1] if len(args) > 1 else args[0].exc_value
  return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
