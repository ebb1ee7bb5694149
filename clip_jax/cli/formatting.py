"""Formatting for people: tables, numbers and durations."""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
  """Formats a table with a header; columns of numbers, or text that parses as one, align right."""
  rows = [[number(x) if isinstance(x, (int, float)) else str(x) for x in row] for row in rows]
  right = [bool(rows) and all(_reads_as_number(row[k]) for row in rows) for k in range(len(header))]
  widths = [max(len(row[k]) for row in [list(header), *rows]) for k in range(len(header))]
  aligned = [
    "  ".join(x.rjust(w) if r else x.ljust(w) for x, w, r in zip(row, widths, right))
    for row in [list(header), ["-" * w for w in widths], *rows]
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
