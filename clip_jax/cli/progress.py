"""Progress of long commands: a bar on a terminal, plain lines in a log."""

from collections.abc import Callable
import shutil
import sys
import time
from typing import TextIO

from clip_jax.cli.formatting import duration, number

_CELLS = 20  # Width of a bar.
_REFRESH = 0.1  # Seconds between two pictures of a bar.


def bar(share: float, stream: TextIO) -> str:
  """Returns a bar for a share from 0 to 1, in characters that the stream can encode."""
  full, empty = "█", "░"
  try:
    (full + empty).encode(getattr(stream, "encoding", None) or "ascii")
  except (UnicodeEncodeError, LookupError):
    full, empty = "#", "."
  cells = int(_CELLS * min(1.0, max(0.0, share)))
  return full * cells + empty * (_CELLS - cells)


class StatusLine:
  """The last line of a terminal, which is overwritten in place, or lines of a log.

  Attributes:
    on_terminal: whether the stream is a terminal.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream
    self.on_terminal = stream.isatty()
    self._line = ""

  def show(self, line: str, share: float) -> None:
    """Shows a line, with a bar before it on a terminal."""
    if not self.on_terminal:
      self._write(f"{line}\n")
      return
    # Truncate the line, because a wrapped one could not be overwritten.
    width = shutil.get_terminal_size().columns - 1
    self._line = f"{bar(share, self._stream)}  {line}"[:width]
    self._write(f"\r\x1b[K{self._line}")

  def note(self, text: str) -> None:
    """Prints whole lines, above the status line if there is one."""
    self._write(("\r\x1b[K" if self._line else "") + f"{text}\n{self._line}")

  def end(self) -> None:
    """Leaves the status line as it is and continues below it."""
    if self._line:
      self._write("\n")
      self._line = ""

  def clear(self) -> None:
    """Removes the status line."""
    if self._line:
      self._write("\r\x1b[K")
      self._line = ""

  def _write(self, text):
    self._stream.write(text)
    self._stream.flush()


def log(line: str) -> None:
  """Prints a line to standard error at once: what `Progress` calls where output is a result."""
  print(line, file=sys.stderr, flush=True)


class Progress:
  """Reports count, rate, time left and damaged items.

  If standard error is a terminal, there is a bar, overwritten in place. Otherwise `say` gets a line
  at intervals and at the end.
  """

  def __init__(
    self,
    total: int,
    say: Callable[[str], None],
    unit: str,
    *,
    every: float = 10.0,
    last: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total: number of items to process.
      say: function that is called with each line of a log.
      unit: name of the items, such as "images".
      every: seconds between two lines of a log.
      last: whether there is a line at the end, however short the time. Without it, a bar is removed
        at the end.
      stream: the terminal, if it is one; standard error by default.
      clock: returns the time in seconds.
    """
    self.total, self.say, self.unit, self.every, self.last = total, say, unit, every, last
    self.done = self.damaged = 0
    self.line, self.clock = StatusLine(stream or sys.stderr), clock
    self.begun = self.shown = clock()

  def add(self, done: int, damaged: int = 0, note: str = "") -> None:
    """Adds `done` processed items, `damaged` ones included, and may show them.

    Args:
      done: number of items.
      damaged: number of damaged ones among them.
      note: shown after the rate.
    """
    self.done, self.damaged = self.done + done, self.damaged + damaged
    now, over = self.clock(), self.done >= self.total
    if over and self.line.on_terminal and not self.last:
      self.line.clear()
      return
    every = _REFRESH if self.line.on_terminal else self.every
    if now - self.shown < every and not (over and self.last):
      return
    self.shown = now
    text = self._text(max(now - self.begun, 1e-9), note)
    if self.line.on_terminal:
      self.line.show(text, self.done / max(self.total, 1))
      if over:
        self.line.end()
    else:
      self.say(text)

  def _text(self, seconds, note):
    rate = self.done / seconds
    parts = [
      f"{self.done:,}/{self.total:,} {self.unit}",
      f"{100 * self.done // max(self.total, 1)}%",
      f"{number(rate)} {self.unit}/s",
      note,
      f"damaged {self.damaged:,}" if self.damaged else "",
    ]
    if self.done < self.total and rate:
      parts.append(f"time left {duration((self.total - self.done) / rate)}")
    elif seconds >= 1:
      parts.append(f"took {duration(seconds)}")
    return "  ".join(filter(None, parts))
