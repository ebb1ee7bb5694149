"""Predicts the error of recipes that were not run, from laws and effects fitted to runs."""

from collections.abc import Iterable
import csv
import dataclasses
import functools
import math

import numpy as np

from clip_jax.cli.formatting import number
from clip_jax.errors import UserError
from clip_jax.study import laws, runs_table
from clip_jax.study.designs import short
from clip_jax.study.law_fits import mean_over_seeds
from clip_jax.study.runs_table import RunResult

PLAIN = "CLIP"
# No prediction further than this from the nearest run, in octaves (factors of 2).
MAX_OCTAVES = 3.5
# Relative error of applying an effect that was measured on another architecture.
TRANSFER_ERROR = 0.05
# Kernel width in octaves for correcting a law by the residuals of nearby runs.
KERNEL_WIDTH = 0.7
NORMAL_90 = 1.645


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A recipe that could be trained, and its predicted error.

  Attributes:
    arch, method: architecture and strategy, named as in `designs`.
    quality: percent of the pairs kept by the quality cut, best first.
    epochs: number of passes over the pairs that are kept.
    samples: number of examples seen in all.
    error: predicted error in percent.
    low, high: 90% interval of the error.
    octaves: log2 distance to the nearest run that the prediction is based on.
    evidence: one line for each law or effect used: its source and the distance to it.
    command: command that trains the recipe.
    flops: training FLOPs; NaN if unknown.
  """

  arch: str
  method: str
  quality: float
  epochs: float
  samples: float
  error: float
  low: float
  high: float
  octaves: float
  evidence: tuple[str, ...]
  command: str
  flops: float

  @property
  def name(self) -> str:
    """Architecture, strategy and quality cut."""
    cut = "all pairs" if self.quality == 100 else f"best {self.quality:g}%"
    return f"{self.arch}, {self.method}, {cut}"


class Predictor:
  """Scaling laws of plain CLIP per architecture, and effects of strategies, cuts, architectures.

  An effect is the ratio of a run's error to that of plain CLIP at the same data size and number of
  samples. The baseline of a strategy is the same architecture; that of an architecture without a
  law of its own is the reference architecture; that of a quality cut is the law's prediction.
  """

  def __init__(self, points: Iterable[RunResult], data: str):
    """Fits the laws and effects.

    Args:
      points: runs on one data set, with errors of one metric.
      data: name of the data set, "webli" for the paper.

    Raises:
      UserError: no architecture has enough runs of plain CLIP.
    """
    points = list(points)
    self.data, whole = data, mean_over_seeds(points)
    plain = [p for p in whole if p.method == PLAIN]
    archs = sorted({p.arch for p in plain})
    self.runs = {arch: [p for p in plain if p.arch == arch] for arch in archs}
    self.laws = {}
    for arch, own in self.runs.items():
      try:
        self.laws[arch] = _law(own)
      except UserError:
        pass
    if not self.laws:
      raise UserError(
        "No architecture has enough runs of plain CLIP to fit a law. Add sizes to the grid."
      )
    self.reference = max(self.laws, key=lambda arch: len(self.runs[arch]))
    self.drift = _drift(self.runs[arch] for arch in self.laws)
    base = self.runs[self.reference]
    self.archs = {
      arch: _ratios(own, base) for arch, own in self.runs.items() if arch not in self.laws
    }
    self.methods = {}
    for method in sorted({p.method for p in whole} - {PLAIN}):
      for arch in archs:
        ratios = _ratios(
          [
            p
            for p in whole
            if p.method == method
            and p.arch == arch
            and p.aug in ("none", "unstated", "stacked RandAugment")
          ],
          self.runs[arch],
        )
        if ratios and len(ratios) > len(self.methods.get(method, ("", ()))[1]):
          self.methods[method] = (arch, ratios)
    self.cuts = {}
    for p in points:
      if p.quality < 100 and p.method == PLAIN and p.arch in self.laws:
        law = float(self.laws[p.arch](p.dataset_size, p.epochs)[0])
        self.cuts.setdefault(p.quality, []).append((p, math.log(p.error / law)))

  def rank(
    self, pairs: float, compute: float | None, samples: float | None
  ) -> tuple[list[Recipe], list[str]]:
    """Ranks every recipe that there is evidence about.

    Args:
      pairs: number of pairs available.
      compute: training FLOPs; used if `samples` is None.
      samples: number of examples seen in training.

    Returns:
      (recipes, best first; recipes without a prediction, each with the reason)
    """
    found, unpredicted = [], {}
    for arch in self.runs:
      for method in (PLAIN, *self.methods):
        for quality in (100.0, *self.cuts):
          cost = self._cost(arch, method)
          if cost is None:
            if compute:
              unpredicted[f"{arch}, {method}"] = (
                "its compute is unknown (FLIP drops patches, which only a ViT can do)"
              )
            continue
          seen = samples or compute / (6e9 * cost)
          options = [
            self._recipe(
              arch, method, quality, pairs, min(seen, many * pairs * quality / 100), cost
            )
            for many in (1, 2, 4, 8, 16, 32, math.inf)
          ]
          predicted_options = [one for one in options if isinstance(one, Recipe)]
          if not isinstance(options[-1], Recipe):
            unpredicted.setdefault(f"{arch}, {method}", options[-1])
          if predicted_options:
            # Stop before the budget is spent if more epochs raise the error.
            best = min(predicted_options, key=lambda r: (round(r.error, 1), -r.samples))
            found.append(best)
    # Between similar predictions prefer the more certain one: add half a standard deviation.
    pessimistic = lambda r: math.log(r.error) + math.log(r.high / r.error) / NORMAL_90 / 2
    return (sorted(found, key=pessimistic), [f"{name}: {why}" for name, why in unpredicted.items()])

  def _recipe(self, arch, method, quality, pairs, samples, cost):
    """Returns a `Recipe`, or the reason for making no prediction as a string."""
    D = pairs * quality / 100
    epochs = samples / D
    if samples < 1 or D < 1:
      return "the budget or the cut leaves less than one example"
    if method == "CLIP+DA" and epochs < 2 and self.data == "webli":
      return "augmentation hurts when each pair is seen once (stated in the paper without numbers)"
    measured = self.laws.get(arch) is not None
    own = self.runs[arch if measured else self.reference]
    law = self.laws[arch if measured else self.reference]
    # With less than one epoch, only the pairs that are seen count as data.
    nearest, distance = _nearest(own, min(D, samples), max(epochs, 1))
    log_error = math.log(float(law(D, epochs)[0])) + _residual_correction(law, own, D, epochs)
    low, high = law.interval(D, epochs)
    variance = (math.log(float(high[0]) / float(low[0])) / 2 / NORMAL_90) ** 2
    evidence = [
      _evidence_line(
        nearest, distance, D, epochs, f"law fitted to {len(own)} runs of {nearest.arch}"
      )
    ]
    effects = [] if measured else [(f"{arch} against {self.reference}", self.archs[arch], arch)]
    if method != PLAIN:
      on, ratios = self.methods[method]
      effects.append((f"{method} against {PLAIN}, on {on}", ratios, on))
    for what, ratios, on in effects:
      if not ratios:
        return f"no run compares {what}"
      ratio, spread, other, away = _effect(ratios, D, epochs)
      log_error += ratio
      variance += spread**2 + (TRANSFER_ERROR**2 if on != arch else 0)
      distance = max(distance, away)
      evidence.append(
        _evidence_line(other, away, D, epochs, f"{what}: error x {math.exp(ratio):.2f}")
      )
    if quality < 100:
      cut = self.cuts[quality]
      values = [value for _, value in cut]
      pool = cut[0][0].dataset_size * 100 / quality
      away = abs(math.log2(pairs / pool))
      # Cuts were measured on a single pool size; elsewhere their effect is a guess, so widen.
      log_error += float(np.mean(values))
      variance += (
        float(np.var(values))
        + (TRANSFER_ERROR**2 if cut[0][0].arch != arch else 0)
        + (0.03 * min(away, MAX_OCTAVES)) ** 2
      )
      evidence.append(
        f"best {quality:g}% against as many random pairs: "
        f"error x {math.exp(np.mean(values)):.2f} "
        f"({', '.join(dict.fromkeys(_source_of(p) for p, _ in cut))}: "
        f"a pool of {short(round(pool))}"
        + (f", a factor of {2**away:.2g} away)" if away > 0.2 else ")")
      )
    if distance > MAX_OCTAVES:
      return (
        f"the nearest run is a factor of {2**distance:.2g} away "
        f"({short(nearest.dataset_size)} pairs, {nearest.epochs:.3g} epochs)"
      )
    deviation = math.sqrt(variance + (self.drift * distance) ** 2)
    error = math.exp(log_error)
    return Recipe(
      arch,
      method,
      quality,
      epochs,
      samples,
      min(error, 100.0),
      error * math.exp(-NORMAL_90 * deviation),
      min(100.0, error * math.exp(NORMAL_90 * deviation)),
      distance,
      tuple(evidence),
      self._command(arch, method, quality, samples, nearest),
      6e9 * cost * samples,
    )

  def _cost(self, arch, method):
    """1e9 forward multiply-adds per example; for the paper's recipes as this package counts."""
    if self.data == "webli":
      return _costs().get((arch, method))
    same = [p.forward_gmacs for p in self.runs[arch] if math.isfinite(p.forward_gmacs)]
    if not same:
      return None
    if method == PLAIN:
      return float(np.mean(same))
    _, ratios = self.methods[method]
    times = [p.forward_gmacs / q.forward_gmacs for p, q, _ in ratios]
    return float(np.mean(same) * np.mean(times)) if all(map(math.isfinite, times)) else None

  def _command(self, arch, method, quality, samples, nearest):
    if self.data != "webli":
      return f"the config.json of {nearest.where} with --config.train.samples={round(samples)}"
    cut = "" if quality == 100 else f",{quality:g}"
    path = "source.path" if quality == 100 else "source.source.path"
    return (
      f"python -m clip_jax.train --config=study/recipe:{arch},{method}{cut} "
      f"--workdir=DIR --config.data.{path}=DATA --config.train.samples={round(samples)}"
    )


def _law(points, replicates=60):
  """Fits a law of data and epochs, or of data alone if every run has one epoch.

  Raises:
    UserError: too few runs, or runs in which repetition and data are confounded.
  """
  once = [p for p in points if p.epochs < 1.01]
  again = [p for p in points if p.epochs >= 1.01]
  if (
    len(once) < 3 and len(again) >= laws.MIN_POINTS + 1 and len({p.samples_seen for p in again}) < 2
  ):
    raise UserError(
      "All these runs saw the same number of samples, so the effects of repetition "
      "and data cannot be separated. Add runs of one epoch."
    )
  return laws.fit(
    [p.dataset_size for p in points],
    [p.error for p in points],
    [p.epochs for p in points],
    replicates=replicates,
  )


def _drift(groups):
  """Relative error per octave of extrapolation, measured by predicting the largest size."""
  misses = []
  for points in groups:
    largest = max(p.dataset_size for p in points)
    small = [p for p in points if p.dataset_size <= largest / 4]
    try:
      law = _law(small, replicates=1)
    except UserError:
      continue
    ends = [p for p in points if p.dataset_size == largest]
    largest_known = max(p.dataset_size for p in small)
    misses += [
      math.log(p.error / float(law(p.dataset_size, p.epochs)[0]))
      / math.log2(largest / largest_known)
      for p in ends
    ]
  return max(0.02, float(np.sqrt(np.mean(np.square(misses))))) if misses else 0.1


def _ratios(points, base):
  """Pairs runs of equal data size, samples and seed: (run, base run, log ratio of errors)."""
  plain = {(p.dataset_size, p.samples_seen, p.seed): p for p in base}
  found = []
  for p in points:
    q = plain.get((p.dataset_size, p.samples_seen, p.seed))
    if q:
      found.append((p, q, math.log(p.error / q.error)))
  return found


def _coordinates(D, epochs):
  return np.array([math.log2(D), math.log2(max(epochs, 1))])


def _nearest(points, D, epochs):
  """Returns the nearest run in pairs and epochs, and its distance in octaves.

  The distance is scaled by 0.3 if runs surround the position on all sides.
  """
  here = _coordinates(D, epochs)
  places = np.array([_coordinates(p.dataset_size, p.epochs) for p in points])
  off = np.linalg.norm(places - here, axis=1)
  i = int(np.argmin(off))
  # Runs on both sides in both directions make this an interpolation, which is safer.
  sides = {tuple(s) for s in np.sign(np.round(places - here, 2)).astype(int)}
  inside = all(any((a * x >= 0 and b * y >= 0) for a, b in sides) for x in (-1, 1) for y in (-1, 1))
  return points[i], float(off[i]) * (0.3 if inside else 1.0)


def _residual_correction(law, points, D, epochs):
  """Correction to the law's log error: the mean residual of nearby runs, kernel-weighted."""
  here = _coordinates(D, epochs)
  predicted = law([p.dataset_size for p in points], [p.epochs for p in points])
  residual = np.log([p.error for p in points]) - np.log(predicted)
  off = [np.linalg.norm(_coordinates(p.dataset_size, p.epochs) - here) for p in points]
  weight = np.exp(-np.square(np.array(off) / KERNEL_WIDTH))
  return float((weight * residual).sum() / (weight.sum() + 0.3))


def _effect(ratios, D, epochs):
  """Estimates an effect at some data size and number of epochs; it fades out with distance.

  Returns:
    (log ratio, its standard deviation, the nearest run, the distance to it in octaves)
  """
  here = _coordinates(D, epochs)
  off = np.array(
    [np.linalg.norm(_coordinates(p.dataset_size, p.epochs) - here) for p, _, _ in ratios]
  )
  value = np.array([value for _, _, value in ratios])
  weight = np.exp(-np.square((off - off.min()) / KERNEL_WIDTH))
  mean = float((weight * value).sum() / weight.sum())
  spread = math.sqrt(float((weight * np.square(value - mean)).sum() / weight.sum()))
  fade = math.exp(-((float(off.min()) / MAX_OCTAVES) ** 2))
  # The faded part may still exist, so it counts as uncertainty.
  return (
    mean * fade,
    math.hypot(spread, mean * (1 - fade), 0.01),
    ratios[int(off.argmin())][0],
    float(off.min()),
  )


def _source_of(point):
  return f"figure {point.where}" if point.data == "webli" else point.where


def _evidence_line(point, octaves, D, epochs, what):
  """One line of evidence: its kind, the nearest run and the distance to that."""
  here = np.linalg.norm(_coordinates(point.dataset_size, point.epochs) - _coordinates(D, epochs))
  how = (
    "measured"
    if here < 0.15
    else ("interpolated" if octaves < 0.31 * here else f"extrapolated by a factor of {2**here:.2g}")
  )
  return (
    f"{what}; nearest run: {_source_of(point)}, {short(point.dataset_size)} pairs, "
    f"{number(point.epochs)} epochs ({how})"
  )


@functools.cache
def _costs():
  """(arch, method) -> 1e9 forward multiply-adds per example, as `count_compute` gives them."""
  with (runs_table.REFERENCE / "costs.csv").open(newline="", encoding="utf-8") as file:
    return {
      (r["arch"], r["method"]): sum(float(r[f"{part}_gmacs"]) for part in ("image", "text", "loss"))
      for r in csv.DictReader(file)
    }
