"""Formatting for people: tables, numbers and durations."""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import Any

# Control characters, line separators, marks that reorder text, and halves of surrogate pairs, which
# stand for the bytes of a file name that is not UTF-8.
_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
  r"""Escapes what could act on a terminal, such as an ESC as \x1b, in a name or caption to print.

  Args:
    text: text of unknown origin.
    keep: characters to leave as they are, for example "\n" in a message of several lines.
  """
  return _UNPRINTABLE.sub(
    lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
  )


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
  """Formats a table with a header; columns of numbers, or text that parses as one, align right."""
  header = [printable(name) for name in header]
  rows = [
    [number(x) if isinstance(x, (int, float)) else printable(str(x)) for x in row] for row in rows
  ]
  right = [bool(rows) and all(_reads_as_number(row[k]) for row in rows) for k in range(len(header))]
  widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
  aligned = [
    "  ".join(x.rjust(w) if r else x.ljust(w) for x, w, r in zip(row, widths, right))
    for row in [header, ["-" * w for w in widths], *rows]
  ]
  return "\n".join(line.rstrip() for line in aligned)


def evaluations(values: Mapping[str, float]) -> str:
  """Formats `evaluator/metric` values as tables; evaluators with the same metrics share a table."""
  evaluators, alike = {}, {}
  for name, value in values.items():
    evaluator, _, metric = name.rpartition("/")
    evaluators.setdefault(evaluator, {})[metric] = value
  for evaluator, metrics in evaluators.items():
    alike.setdefault(tuple(metrics), []).append(evaluator)
  return "\n\n".join(
    table(
      [(metric, *(evaluators[e][metric] for e in group)) for metric in metrics], header=("", *group)
    )
    for metrics, group in alike.items()
  )


def _reads_as_number(text):
  try:
    float(text.replace(",", "").rstrip("%"))
  except ValueError:
    return False
  return True


def number(value: float) -> str:
  """Formats a number with four significant digits, or as an integer from 1,000: 22.66, 5,393."""
  if math.isfinite(value) and abs(value) >= 999.95:
    return f"{value:,.0f}"
  return f"{value:.4g}"


def duration(seconds: float) -> str:
  """Formats a duration in its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
  whole = round(seconds)
  for unit, size, next_unit, next_size in (
    ("d", 86400, "h", 3600),
    ("h", 3600, "min", 60),
    ("min", 60, "s", 1),
  ):
    if whole >= size:
      rest = whole % size // next_size
      return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
  return f"{whole} s"
