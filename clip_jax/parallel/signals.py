"""Shields worker processes from Ctrl-C, which a terminal sends to its whole process group."""

from collections.abc import Callable
import concurrent.futures
import signal
import threading
from typing import Any


def shield_from_sigint(f: Callable[[], Any], *others: int) -> Any:
  """Returns `f()`, run so that processes that it starts ignore Ctrl-C; this one still handles it.

  Workers would otherwise each die with a traceback, and a process waiting for them would hang.

  Args:
    f: starts the processes.
    *others: further signals that they ignore.
  """
  made: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    # Child processes and threads inherit the signal mask of the thread that starts them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
      made.set_result(f())
    except BaseException as error:
      made.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return made.result()
