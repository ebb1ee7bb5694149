"""Rounds of faults by kind, with progress, and the table of what was tried and what survived."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from random import Random
import shutil
import tempfile
import time
import traceback

from clip_jax.cli.formatting import duration, table
from faults.commands import Place

# Tries one fault, drawn at random; raises an AssertionError if something does not survive it.
Attempt = Callable[[Place, Random], object]


class Unavailable(Exception):
  """A kind of fault that cannot be tried on this machine."""


@dataclasses.dataclass
class Count:
  """Rounds of a kind that are wanted, were tried and survived, and the seconds that they took."""

  wanted: int
  tried: int = 0
  survived: int = 0
  seconds: float = 0.0


def random_of(kind: str, seed: int, round_: int) -> Random:
  """The random numbers of one round; round r of seed s is round 0 of seed s + r."""
  return Random(f"{kind} {seed + round_}")


def run_rounds(
  attempts: Mapping[str, Attempt],
  rounds: Mapping[str, int],
  seed: int,
  say: Callable[[str], None],
  counts: dict[str, Count],
) -> None:
  """Tries faults of each kind in turn, `rounds` by kind, and counts them in `counts`.

  What does not survive is printed with the command that repeats it, and its files are kept.
  """
  counts.update((kind, Count(rounds[kind])) for kind in attempts)
  folder = Path(tempfile.mkdtemp(prefix="faults-"))
  place, failed, shown = Place(folder), False, time.monotonic()
  try:
    for round_ in range(max(rounds.values())):
      for kind, attempt in attempts.items():
        count, begun = counts[kind], time.monotonic()
        if round_ >= count.wanted:
          continue
        try:
          attempt(place, random_of(kind, seed, round_))
          count.survived += 1
        except Unavailable as why:
          say(f"{kind} is left out: {why}")
          count.wanted = 0
          continue
        except Exception:
          failed = True
          say(
            f"\n{kind}, round {round_}, did not survive. Files are kept in {folder}. To repeat it:"
            f"\n  python -m tests.faults --kinds={kind} --rounds=1 --seed={seed + round_}"
            f"\n{traceback.format_exc()}"
          )
        finally:
          place.stop()
        count.tried += 1
        count.seconds += time.monotonic() - begun
        if time.monotonic() - shown > 10:
          shown = time.monotonic()
          say(progress(counts))
  finally:
    if not failed:
      shutil.rmtree(folder, ignore_errors=True)


def progress(counts: Mapping[str, Count]) -> str:
  """One line with the number of rounds so far and the time that the others will take."""
  wanted, tried, survived, seconds = totals(counts)
  mean = seconds / max(tried, 1)
  left = sum(
    (count.wanted - count.tried) * (count.seconds / count.tried if count.tried else mean)
    for count in counts.values()
  )
  return f"{tried:,}/{wanted:,} rounds  {survived:,} survived  time left {duration(left)}"


def totals(counts: Mapping[str, Count]) -> tuple[int, int, int, float]:
  """Rounds of all kinds that are wanted, were tried and survived, and their seconds."""
  return tuple(map(sum, zip(*map(dataclasses.astuple, counts.values()), strict=True)))


def format_counts(counts: Mapping[str, Count], titles: Mapping[str, str]) -> str:
  """A table of what was tried and what survived."""
  rows: list[Sequence[str]] = [
    (kind, titles[kind], f"{count.tried:,}", f"{count.survived:,}", duration(count.seconds))
    for kind, count in counts.items()
  ]
  _, tried, survived, seconds = totals(counts)
  rows.append(("all", "", f"{tried:,}", f"{survived:,}", duration(seconds)))
  return table(rows, ("kind", "fault", "tried", "survived", "time"))
