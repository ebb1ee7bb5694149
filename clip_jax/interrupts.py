"""Ctrl-C, which a terminal sends to every process that was started from it."""

from collections.abc import Callable
import concurrent.futures
import signal
import threading
from typing import Any


def deaf(f: Callable[[], Any]) -> Any:
  """What `f()` returns; processes that it starts never hear of Ctrl-C, while this one still does.

  Workers would each die with a traceback of their own, and whoever waits for them would not end.
  """
  made: concurrent.futures.Future = concurrent.futures.Future()

  def run():
    # Processes have what the thread has that starts them, and so have threads.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      made.set_result(f())
    except BaseException as error:
      made.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return made.result()
