"""Progress: a bar that is overwritten on a terminal, lines at intervals in a log."""

import io

import pytest

from clip_jax.cli.progress import Progress, StatusLine, bar


class Terminal(io.StringIO):
  encoding = "utf-8"

  def isatty(self):
    return True


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


def make(total, stream, **options):
  said, clock = [], Clock()
  progress = Progress(total, said.append, "images", stream=stream, clock=clock, **options)
  return progress, said, clock


@pytest.mark.parametrize("share, full", [(0, 0), (0.049, 0), (0.5, 10), (1, 20), (2, 20), (-1, 0)])
def test_a_bar_fills_with_the_share(share, full):
  assert bar(share, Terminal()) == "█" * full + "░" * (20 - full)


def test_a_stream_without_blocks_gets_ascii():
  stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
  assert bar(0.5, stream) == "#" * 10 + "." * 10


def test_a_log_gets_lines_at_intervals_and_at_the_end():
  progress, said, clock = make(1000, io.StringIO())
  for _ in range(10):
    clock.now += 4
    progress.add(100, damaged=1)
  assert said == [
    "300/1,000 images  30%  25 images/s  damaged 3  time left 28 s",
    "600/1,000 images  60%  25 images/s  damaged 6  time left 16 s",
    "900/1,000 images  90%  25 images/s  damaged 9  time left 4 s",
    "1,000/1,000 images  100%  25 images/s  damaged 10  took 40 s",
  ]


def test_a_log_gets_no_line_of_short_work_unless_asked():
  for last, lines in ((True, 1), (False, 0)):
    progress, said, clock = make(10, io.StringIO(), last=last)
    clock.now += 0.5
    progress.add(10)
    assert len(said) == lines


def test_a_terminal_gets_a_bar_that_is_overwritten(monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  stream = Terminal()
  progress, said, clock = make(4, stream)
  for seconds in (0.01, 1, 1, 1):  # The first comes too soon after the start to be shown.
    clock.now += seconds
    progress.add(1, note="2 dropped")
  shown = stream.getvalue().split("\r\x1b[K")[1:]
  assert not said and len(shown) == 3
  assert shown[0].startswith("█" * 10 + "░" * 10 + "  2/4 images  50%")
  assert shown[2].startswith("█" * 20 + "  4/4 images  100%") and shown[2].endswith("\n")
  assert all(len(line.rstrip("\n")) <= 59 for line in shown)


def test_a_bar_without_a_last_line_is_removed():
  stream = Terminal()
  progress, _, clock = make(2, stream, last=False)
  clock.now += 1
  progress.add(1)
  progress.add(1)
  assert stream.getvalue().endswith("\r\x1b[K")


def test_an_empty_total_is_no_error():
  progress, said, _ = make(0, io.StringIO())
  progress.add(0)
  assert said == ["0/0 images  0%  0 images/s"]


def test_lines_are_printed_above_the_status_line():
  stream = Terminal()
  line = StatusLine(stream)
  line.show("half", 0.5)
  line.note("saved")
  line.clear()
  line.note("done")
  half = "█" * 10 + "░" * 10 + "  half"
  assert stream.getvalue() == f"\r\x1b[K{half}\r\x1b[Ksaved\n{half}\r\x1b[Kdone\n"
