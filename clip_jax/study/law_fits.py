"""Fits every scaling law that the available points allow, and tests it on the largest size."""

from collections.abc import Iterable
import csv
import dataclasses
import math
from pathlib import Path

import numpy as np

from clip_jax.cli.formatting import table
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.study import laws
from clip_jax.study.runs_table import TITLES, RunResult


@dataclasses.dataclass(frozen=True)
class FittedLaw:
  """A scaling law fitted to one series of points.

  Attributes:
    kind: what the error depends on: "data, one epoch", "data, same samples", "data and epochs",
      "compute, frontier" or "model size".
    data, metric, series: data set, metric and name of the series.
    x, error, epochs: the points that the law was fitted to, float [n] each.
    law: the fitted law.
    held_out: its prediction of the largest size; None with too few points.
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


def fit_all(points: Iterable[RunResult]) -> list[FittedLaw]:
  """Fits every law that has enough points. Runs on a quality cut are left out.

  Raises:
    UserError: no law has enough points.
  """
  found = []
  for (data, metric), own in _group_by(
    mean_over_seeds(points), lambda p: (p.data, p.metric)
  ).items():
    for series, one in _group_by(own, series_label).items():
      once = [p for p in one if p.epochs < 1.01]
      same = _largest_group(one, lambda p: p.samples_seen)
      size = lambda p: p.dataset_size
      _fit_if_possible(found, "data, one epoch", data, metric, series, once, size)
      _fit_if_possible(found, "data, same samples", data, metric, series, same, size)
      if len(once) >= 3 and len(one) - len(once) >= 3:
        _fit_if_possible(
          found, "data and epochs", data, metric, series, one, size, lambda p: p.epochs
        )
    counted = [p for p in own if math.isfinite(p.forward_gmacs)]
    if counted:
      best = laws.frontier([p.gmacs for p in counted], [p.error for p in counted])
      _fit_if_possible(
        found,
        "compute, frontier",
        data,
        metric,
        "all",
        [p for p, keep in zip(counted, best) if keep],
        lambda p: p.gmacs,
      )
      plain = [p for p in counted if p.method == "CLIP" and p.aug == "none"]
      _fit_if_possible(
        found,
        "model size",
        data,
        metric,
        "all architectures",
        _largest_group(plain, lambda p: (p.dataset_size, p.samples_seen)),
        lambda p: p.forward_gmacs,
      )
  if not found:
    raise UserError(
      f"No series has the {laws.MIN_POINTS} different sizes that fitting a law needs. "
      "Add sizes to the grid."
    )
  return found


def mean_over_seeds(points: Iterable[RunResult]) -> list[RunResult]:
  """Drops points of quality cuts and averages those that several figures show of the same run."""
  same = _group_by(
    (p for p in points if p.quality == 100),
    lambda p: (p.data, p.metric, p.arch, p.method, p.aug, p.dataset_size, p.samples_seen, p.seed),
  )
  return [
    dataclasses.replace(group[0], error=float(np.mean([p.error for p in group])))
    for group in same.values()
  ]


def series_label(point: RunResult) -> str:
  """Name of the series of a point: its architecture, and its strategy unless plain CLIP."""
  if point.aug not in ("none", "unstated") and point.method == "CLIP+DA":
    return f"{point.arch} CLIP + {point.aug}"
  return point.arch + ("" if point.method == "CLIP" else f" {point.method}")


def format_laws(found: list[FittedLaw]) -> str:
  """Formats fitted laws as a table for the terminal."""
  rows = []
  for one in found:
    constants = one.law.constants
    bounds = lambda n, form: (
      "{} [{}, {}]".format(*(format(v, form) for v in constants[n])) if n in constants else ""
    )
    held = one.held_out
    rows.append(
      (
        one.data,
        TITLES[one.metric],
        one.kind,
        one.series,
        len(one.x),
        bounds("floor", ".1f"),
        bounds("exponent", ".2f"),
        bounds("repeats", ".1f"),
        f"{100 * one.law.spread:.1f}%",
        "" if held is None else f"{held.predicted:.1f} [{held.low:.1f}, {held.high:.1f}]",
        "" if held is None else f"{held.measured:.1f}",
        "" if held is None else f"{held.miss:+.1f}",
      )
    )
  return table(
    rows,
    (
      "data",
      "error of",
      "against",
      "series",
      "points",
      "floor",
      "exponent",
      "R",
      "spread",
      "largest predicted",
      "measured",
      "miss",
    ),
  )


def write_csv(found: list[FittedLaw], path: Path) -> None:
  """Writes fitted laws to a CSV file, with a column for each constant and interval bound."""
  with atomic_write(path) as file:
    names = ("floor", "scale", "exponent", "repeats")
    held = ("x", "factor", "predicted", "low", "high", "measured", "miss", "inside")
    writer = csv.writer(file)
    writer.writerow(
      [
        "data",
        "metric",
        "against",
        "series",
        "points",
        *(f"{n}{end}" for n in names for end in ("", "_low", "_high")),
        "spread",
        *(f"largest_{n}" for n in held),
      ]
    )
    for one in found:
      constants = one.law.constants
      writer.writerow(
        [
          one.data,
          one.metric,
          one.kind,
          one.series,
          len(one.x),
          *(v for n in names for v in constants.get(n, ("", "", ""))),
          one.law.spread,
          *(getattr(one.held_out, n) if one.held_out else "" for n in held),
        ]
      )


def _fit_if_possible(found, kind, data, metric, series, points, x, epochs=lambda p: 1.0):
  """Fits a law and appends it to `found`, if there are enough points."""
  x = np.array([x(p) for p in points], float)
  epochs = np.array([epochs(p) for p in points], float)
  error = np.array([p.error for p in points], float)
  try:
    law = laws.fit(x, error, epochs)
  except UserError:
    return
  found.append(
    FittedLaw(kind, data, metric, series, x, error, epochs, law, laws.held_out(x, error, epochs))
  )


def _group_by(points, key):
  groups = {}
  for point in points:
    groups.setdefault(key(point), []).append(point)
  return groups


def _largest_group(points, key):
  """The largest group of points with equal keys; ties are broken by the largest key."""
  groups = _group_by(points, key)
  return groups[max(groups, key=lambda k: (len(groups[k]), k))] if groups else []
