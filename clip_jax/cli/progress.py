"""Progress lines for long commands."""

from collections.abc import Callable
import time

from clip_jax.cli.formatting import duration, number


class Progress:
  """Reports progress at intervals and at the end: count, rate, time left, damaged items."""

  def __init__(
    self,
    total: int,
    say: Callable[[str], None],
    unit: str,
    *,
    every: float = 10.0,
    last: bool = True,
  ):
    """Starts the clock.

    Args:
      total: number of items to process.
      say: function that is called with each line.
      unit: name of the items, such as "images".
      every: seconds between two lines.
      last: whether to print a line at the end even if less than `every` seconds have passed.
    """
    self.total, self.say, self.unit, self.every, self.last = total, say, unit, every, last
    self.done = self.damaged = 0
    self.begun = self.shown = time.monotonic()

  def add(self, done: int, damaged: int = 0) -> None:
    """Adds `done` processed items, `damaged` ones included, and may print a line."""
    self.done, self.damaged = self.done + done, self.damaged + damaged
    now = time.monotonic()
    if now - self.shown < self.every and (self.done < self.total or not self.last):
      return
    self.shown = now
    rate = self.done / max(now - self.begun, 1e-9)
    self.say(
      f"{self.done:,}/{self.total:,} {self.unit}  {100 * self.done // self.total}%  "
      f"{number(rate)} {self.unit}/s"
      + (
        f"  time left {duration((self.total - self.done) / rate)}" if self.done < self.total else ""
      )
      + (f"  damaged {self.damaged:,}" if self.damaged else "")
    )
