"""How a run is asked to stop: SIGTERM, as clouds send it before they take a machine, and Ctrl-C."""

from collections.abc import Iterator
import contextlib
import signal
from typing import Self

import jax
from jax.experimental import multihost_utils


class Stop:
  """Whether SIGTERM came, or Ctrl-C in `train`, for the loop to see after a step.

  It listens while it is entered, and sees the same step on all processes.

  Attributes:
    asked: the signal that came.
  """

  def __init__(self) -> None:
    self.asked: int | None = None

  def __enter__(self) -> Self:
    self._before = self._listen(signal.SIGTERM)
    return self

  def __exit__(self, *_: object) -> None:
    # Who sent SIGTERM may do so again before Python has ended, and would hide the exit code.
    if self.asked != signal.SIGTERM:
      self._restore(signal.SIGTERM, self._before)

  @contextlib.contextmanager
  def on_interrupt(self) -> Iterator[None]:
    """Lets the first Ctrl-C in here ask, and the second one raise."""
    before = self._listen(signal.SIGINT)
    try:
      yield
    finally:
      self._restore(signal.SIGINT, before)

  def at(self, step: int) -> bool:
    """Whether to stop after this step; to be asked after every one, for processes agree on one."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.asked is not None

  def _listen(self, number):
    """The handler that ours replaces; None if there is nothing to catch."""
    if jax.process_count() > 1:
      return None  # JAX listens for SIGTERM, and a handler of ours would make it deaf.
    try:
      return signal.signal(number, self._ask) or signal.SIG_DFL
    except ValueError:  # Not the main thread (a notebook's cell run by a server).
      return None

  def _restore(self, number, before):
    if before is not None:
      signal.signal(number, before)

  def _ask(self, number, _):
    if number == signal.SIGINT and self.asked:
      raise KeyboardInterrupt
    self.asked = number
