"""Which laws there are to fit among some points, fitted, with what they said of the largest run."""

from collections.abc import Iterable
import csv
import dataclasses
import math
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError
from clip_jax.report import table
from clip_jax.study import laws
from clip_jax.study.records import TITLES, Point


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A law of one series.

  Attributes:
    kind: what the error is a law of: "data, one epoch", "data, same samples", "data and epochs",
      "compute, best of all", "size of the model".
    data, metric, series: whose.
    x, error, epochs: the points, float [n] each.
    law, held_out: as of `laws`.
  """
  kind: str
  data: str
  metric: str
  series: str
  x: np.ndarray
  error: np.ndarray
  epochs: np.ndarray
  law: laws.Law
  held_out: laws.HeldOut | None


def fit_all(points: Iterable[Point]) -> list[Fitted]:
  """Every law that has points enough, the whole pool's only.

  Raises:
    UserError: there is not one.
  """
  found = []
  for (data, metric), own in _by(merged(points), lambda p: (p.data, p.metric)).items():
    for series, one in _by(own, label).items():
      once = [p for p in one if p.epochs < 1.01]
      same = _largest_group(one, lambda p: p.samples_seen)
      size = lambda p: p.dataset_size
      _try(found, "data, one epoch", data, metric, series, once, size)
      _try(found, "data, same samples", data, metric, series, same, size)
      if len(once) >= 3 and len(one) - len(once) >= 3:
        _try(found, "data and epochs", data, metric, series, one, size, lambda p: p.epochs)
    counted = [p for p in own if math.isfinite(p.forward_gmacs)]
    if counted:
      best = laws.frontier([p.gmacs for p in counted], [p.error for p in counted])
      _try(found, "compute, best of all", data, metric, "all",
           [p for p, keep in zip(counted, best) if keep], lambda p: p.gmacs)
      plain = [p for p in counted if p.method == "CLIP" and p.aug == "none"]
      _try(found, "size of the model", data, metric, "all architectures",
           _largest_group(plain, lambda p: (p.dataset_size, p.samples_seen)),
           lambda p: p.forward_gmacs)
  if not found:
    raise UserError(f"No series has {laws.FEWEST} different sizes, which a law needs. Add sizes to "
                    "the grid.")
  return found


def merged(points: Iterable[Point]) -> list[Point]:
  """The whole pool's points; a number that stands in several figures only once, their mean."""
  same = _by((p for p in points if p.quality == 100), lambda p: (
      p.data, p.metric, p.arch, p.method, p.aug, p.dataset_size, p.samples_seen, p.seed))
  return [dataclasses.replace(group[0], error=float(np.mean([p.error for p in group])))
          for group in same.values()]


def label(point: Point) -> str:
  """What a series is called: its architecture, and its strategy if not plain CLIP."""
  if point.aug not in ("none", "unstated") and point.method == "CLIP+DA":
    return f"{point.arch} CLIP + {point.aug}"
  return point.arch + ("" if point.method == "CLIP" else f" {point.method}")


def text(found: list[Fitted]) -> str:
  """A table for a person."""
  rows = []
  for one in found:
    constants = one.law.constants
    bounds = lambda n, form: "{} [{}, {}]".format(
        *(format(v, form) for v in constants[n])) if n in constants else ""
    held = one.held_out
    rows.append((
        one.data, TITLES[one.metric], one.kind, one.series, len(one.x), bounds("floor", ".1f"),
        bounds("exponent", ".2f"), bounds("repeats", ".1f"), f"{100 * one.law.spread:.1f}%",
        "" if held is None else f"{held.predicted:.1f} [{held.low:.1f}, {held.high:.1f}]",
        "" if held is None else f"{held.seen:.1f}", "" if held is None else f"{held.miss:+.1f}"))
  return table(rows, ("data", "error of", "against", "series", "points", "floor", "exponent", "R",
                      "spread", "largest, predicted", "seen", "miss"))


def write(found: list[Fitted], path: Path) -> None:
  """The same as CSV, with every bound a column."""
  with path.open("w", newline="", encoding="utf-8") as file:
    names = ("floor", "scale", "exponent", "repeats")
    held = ("x", "factor", "predicted", "low", "high", "seen", "miss", "inside")
    writer = csv.writer(file)
    writer.writerow(["data", "metric", "against", "series", "points",
                     *(f"{n}{end}" for n in names for end in ("", "_low", "_high")), "spread",
                     *(f"largest_{n}" for n in held)])
    for one in found:
      constants = one.law.constants
      writer.writerow([
          one.data, one.metric, one.kind, one.series, len(one.x),
          *(v for n in names for v in constants.get(n, ("", "", ""))), one.law.spread,
          *(getattr(one.held_out, n) if one.held_out else "" for n in held)])


def _try(found, kind, data, metric, series, points, x, epochs=lambda p: 1.0):
  """Adds the law of some points, if they are enough."""
  x = np.array([x(p) for p in points], float)
  epochs = np.array([epochs(p) for p in points], float)
  error = np.array([p.error for p in points], float)
  try:
    law = laws.fit(x, error, epochs)
  except UserError:
    return
  found.append(Fitted(kind, data, metric, series, x, error, epochs, law,
                      laws.held_out(x, error, epochs)))


def _by(points, key):
  groups = {}
  for point in points:
    groups.setdefault(key(point), []).append(point)
  return groups


def _largest_group(points, key):
  """Those that agree in `key` with the most others; of equally many, where it is largest."""
  groups = _by(points, key)
  return groups[max(groups, key=lambda k: (len(groups[k]), k))] if groups else []
