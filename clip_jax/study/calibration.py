"""Tests the pooled law on runs that it was not fitted to: coverage, error and ranks."""

from collections.abc import Callable, Iterable, Sequence
import csv
import dataclasses
from pathlib import Path

import numpy as np
from scipy import stats

from clip_jax.cli.formatting import table
from clip_jax.files import atomic_write
from clip_jax.study.evidence import Observation, observations
from clip_jax.study.pooled_law import Forecast, PooledLaw


@dataclasses.dataclass(frozen=True)
class HeldOutRun:
  """A run and its forecast by a law that was fitted without it.

  Attributes:
    scheme: which runs were left out together, a name in `SCHEMES`.
    run: the run.
    forecast: its forecast.
  """

  scheme: str
  run: Observation
  forecast: Forecast

  @property
  def miss(self) -> float:
    """Points by which the forecast is too high."""
    return self.forecast.accuracy - self.run.accuracy

  @property
  def inside(self) -> bool:
    """Whether the run is in the interval, allowing for the rounding of its number."""
    slack = min(self.run.precision, 0.05)
    return self.forecast.low - slack <= self.run.accuracy <= self.forecast.high + slack


def _by_corpus(runs):
  return [[r.corpus == corpus for r in runs] for corpus in sorted({r.corpus for r in runs})]


def _sizes(runs):
  """Rank of each run's size within its corpus: of pairs where they were varied, else of samples."""
  found = np.zeros(len(runs), int)
  counts = {}
  for corpus in {r.corpus for r in runs}:
    own = [i for i, r in enumerate(runs) if r.corpus == corpus]
    values = [
      [round(8 * np.log2(getattr(runs[i], name))) for i in own] for name in ("unique", "samples")
    ]
    chosen = max(values, key=lambda v: len(set(v)))
    if runs[own[0]].protocol == "paper":
      chosen = values[0]
    order = sorted(set(chosen))
    counts[corpus] = len(order)
    for i, value in zip(own, chosen):
      found[i] = order.index(value)
  return found, np.array([counts[r.corpus] for r in runs])


def _by_size(runs):
  rank, count = _sizes(runs)
  return [(rank == k) & (count > 2) for k in range(count.max())]


def _largest(runs):
  rank, count = _sizes(runs)
  return [(rank == count - 1) & (count > 2)]


def _by_model(runs):
  """One model of a corpus at a time, with all of its objectives."""
  keys = sorted({(r.corpus, r.shape.name) for r in runs})
  # Several corpora at once, none of them twice.
  place = {key: sorted(k for k in keys if k[0] == key[0]).index(key) for key in keys}
  own = np.array([place[r.corpus, r.shape.name] for r in runs])
  many = np.array([sum(k[0] == r.corpus for k in keys) > 2 for r in runs])
  return [(own == k) & many for k in range(own.max() + 1)]


# Scheme -> (title, function from runs to the masks of those that are left out together)
SCHEMES: dict[str, tuple[str, Callable]] = {
  "corpus": ("one corpus left out", _by_corpus),
  "size": ("one size left out, of each corpus", _by_size),
  "largest": ("the largest size left out, of each corpus", _largest),
  "model": ("one model left out, of each corpus", _by_model),
}


# Metrics with enough runs of several corpora -> schemes. Other metrics than ImageNet zero-shot need
# another fit of that for each of theirs, so they get fewer.
OTHER_SCHEMES = ("corpus", "largest")
METRICS = {
  "zero_shot": tuple(SCHEMES),
  **dict.fromkeys(("variants5", "i2t_r5", "t2i_r5", "datacomp_35"), OTHER_SCHEMES),
}


def number_of_fits(full: PooledLaw, schemes: Iterable[str] = tuple(SCHEMES)) -> int:
  """Returns how many fits `held_out_runs` makes."""
  return sum(bool(np.any(mask)) for scheme in schemes for mask in SCHEMES[scheme][1](full.runs))


def held_out_runs(
  full: PooledLaw,
  schemes: Iterable[str] = tuple(SCHEMES),
  fitted: Callable[[int], None] = lambda number: None,
) -> list[HeldOutRun]:
  """Predicts each run from fits without it and those left out with it.

  Args:
    full: a law fitted to all runs; only its metric and its runs are used.
    schemes: names in `SCHEMES`.
    fitted: called with 1 after each fit.
  """
  runs, found, prior = full.runs, [], None
  for scheme in schemes:
    for mask in SCHEMES[scheme][1](runs):
      out = [run for run, left in zip(runs, mask) if left]
      if out:
        if full.metric != "zero_shot":
          prior = _prior(out)
        law = PooledLaw(full.metric, [r for r, left in zip(runs, mask) if not left], prior=prior)
        found += [HeldOutRun(scheme, run, forecast) for run, forecast in zip(out, law(out))]
        fitted(1)
  return found


def _prior(out):
  """The law of ImageNet zero-shot without the runs, and others like them, that are left out."""
  key = lambda r: (r.corpus, r.protocol, r.shape.name, r.unique, r.samples)
  left = {key(r) for r in out}
  return PooledLaw("zero_shot", [r for r in observations("zero_shot") if key(r) not in left])


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Quality of the forecasts of some held-out runs.

  Attributes:
    metric, scheme, group: of which runs; the group is "all" or one of `group_of`.
    runs: number of runs.
    coverage: percent of them in their 90% interval.
    error: mean absolute error in percentage points.
    bias: mean of forecast minus measured, in points.
    width: mean width of the interval in points.
    rank: mean rank correlation among models at one budget; NaN without four models at one.
  """

  metric: str
  scheme: str
  group: str
  runs: int
  coverage: float
  error: float
  bias: float
  width: float
  rank: float


def group_of(run: Observation) -> str:
  """Corpus of a run; the paper's runs are split by protocol."""
  if run.protocol != "paper":
    return run.corpus + (", constant rate" if run.protocol == "tuned constant" else "")
  if run.method != "CLIP" or run.quality < 100:
    return "WebLI, strategies and cuts"
  if run.samples / run.unique < 1.01:
    return "WebLI, one epoch"
  return "WebLI, " + ("same samples" if run.samples > 3.3e9 else "epochs")


def summarize(metric: str, held: Sequence[HeldOutRun]) -> list[Calibration]:
  """Computes the calibration of each scheme, over all runs and by group."""
  found = []
  for scheme in dict.fromkeys(h.scheme for h in held):
    own = [h for h in held if h.scheme == scheme]
    groups = ["all", *sorted({group_of(h.run) for h in own})]
    for group in groups:
      some = [h for h in own if group in ("all", group_of(h.run))]
      miss = np.array([h.miss for h in some])
      found.append(
        Calibration(
          metric,
          scheme,
          group,
          len(some),
          100 * float(np.mean([h.inside for h in some])),
          float(np.abs(miss).mean()),
          float(miss.mean()),
          float(np.mean([h.forecast.high - h.forecast.low for h in some])),
          _rank_correlation(some),
        )
      )
  return found


def _rank_correlation(held):
  budgets = {}
  for h in held:
    r = h.run
    key = (r.group, r.objective, r.method, r.quality, r.unique, r.samples)
    budgets.setdefault(key, []).append(h)
  ranks = [
    stats.spearmanr([h.forecast.accuracy for h in some], [h.run.accuracy for h in some])[0]
    for some in budgets.values()
    if len(some) >= 4
  ]
  return float(np.mean(ranks)) if ranks else float("nan")


COLUMNS = tuple(field.name for field in dataclasses.fields(Calibration))


def format_calibration(found: Sequence[Calibration]) -> str:
  """Formats calibrations as a table for the terminal."""
  rows = [
    (
      c.metric,
      SCHEMES[c.scheme][0],
      c.group,
      c.runs,
      f"{c.coverage:.0f}%",
      f"{c.error:.2f}",
      f"{c.bias:+.2f}",
      f"{c.width:.1f}",
      "" if np.isnan(c.rank) else f"{c.rank:.2f}",
    )
    for c in found
  ]
  return table(
    rows, ("metric", "left out", "of", "runs", "in 90%", "error", "bias", "width", "rank")
  )


def write_csv(found: Sequence[Calibration], path: Path) -> None:
  """Writes calibrations to a CSV file with the columns of `Calibration`."""
  with atomic_write(path) as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for c in found:
      writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in dataclasses.astuple(c)])
