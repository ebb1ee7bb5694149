"""Graceful stopping: SIGTERM, which clouds send before they reclaim a machine, and Ctrl-C."""

from collections.abc import Iterator
import contextlib
import signal
from typing import Self

import jax
from jax.experimental import multihost_utils


class PreemptionHandler:
  """Records a SIGTERM, or a Ctrl-C during `train`; the loop acts on it after a step.

  A context manager that catches SIGTERM while it is entered. All processes stop at the same step.

  Attributes:
    received: number of the signal that arrived; None if none has.
  """

  def __init__(self) -> None:
    self.received: int | None = None

  def __enter__(self) -> Self:
    self._before = self._install(signal.SIGTERM)
    return self

  def __exit__(self, *_: object) -> None:
    # A second SIGTERM before Python exits would kill the process and replace its exit code.
    if self.received != signal.SIGTERM:
      self._restore(signal.SIGTERM, self._before)

  @contextlib.contextmanager
  def on_interrupt(self) -> Iterator[None]:
    """In this context, the first Ctrl-C requests a stop and the second one raises."""
    before = self._install(signal.SIGINT)
    try:
      yield
    finally:
      self._restore(signal.SIGINT, before)

  def should_stop(self, step: int) -> bool:
    """Whether to stop after `step`; call it after every step, so that processes agree on one."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.received is not None

  def _install(self, number):
    """Installs our handler and returns the previous one; None if no handler was installed."""
    if jax.process_count() > 1:
      return None  # JAX handles SIGTERM across processes; a handler of ours would replace its own.
    try:
      return signal.signal(number, self._on_signal) or signal.SIG_DFL
    except ValueError:  # Not the main thread, as in some notebook servers.
      return None

  def _restore(self, number, before):
    if before is not None:
      signal.signal(number, before)

  def _on_signal(self, number, _):
    if number == signal.SIGINT and self.received:
      raise KeyboardInterrupt
    self.received = number
