"""Ranks recipes for a number of pairs and a training budget, by the pooled law."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from clip_jax.errors import UserError
from clip_jax.study import candidates as candidates_lib, hyperparameters
from clip_jax.study.candidates import Candidate
from clip_jax.study.evidence import METRICS, NoEvidence, Observation
from clip_jax.study.forecasts import corpus_named
from clip_jax.study.law_store import stored_law, updated_law
from clip_jax.study.pooled_law import Forecast

# Range in which the law speaks; beyond its upper end, more of anything is taken to gain nothing.
_SAMPLES = (1e5, 1e11)
_PAIRS = (1e5, 1e11)
_ABSURD = {"pairs": 1e12, "compute": 1e27, "samples": 1e13}  # Larger numbers are mistakes.
_LEAST_KEPT = 10.0  # Percent of a raw pool; stricter cuts were not measured.
NORMAL_90 = 1.645
_ENOUGH = 0.1  # Points of accuracy that the last part of a budget must gain to be worth it.
_RUN_NOISE = 0.05  # Standard deviation of the log-odds of a run, for the run that decides.


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A recipe and its forecast.

  Attributes:
    candidate: model, objective and quality cut.
    samples: number of examples seen.
    unique: number of distinct ones.
    forecast: forecast with tuned hyperparameters.
    flops: training FLOPs.
    settings: batch, learning rate, warm-up and steps.
    enough: share of the budget that gives all but `_ENOUGH` points of the accuracy.
    better: probability that the first recipe is better than this one.
  """

  candidate: Candidate
  samples: float
  unique: float
  forecast: Forecast
  flops: float
  settings: hyperparameters.Settings
  enough: float
  better: float = 0.5

  @property
  def name(self) -> str:
    """Model, objective and quality cut."""
    return self.candidate.name

  @property
  def epochs(self) -> float:
    """Number of passes over the distinct examples."""
    return self.samples / self.unique


@dataclasses.dataclass(frozen=True)
class Advice:
  """The answer to "what should I train?".

  Attributes:
    metric: name in `evidence.METRICS`.
    corpus: name of the corpus; "" if it is of another kind.
    pairs: number of pairs available.
    compute: budget in FLOPs, or None if it is in samples.
    recipes: best first; empty if the law says nothing about so few pairs.
    decisive: the run that would decide between the first two, in words; "" without two.
    starts: published models to start from, in words.
    miniature: what small runs say about so few pairs, in words.
    learned: how your own runs changed the forecast of the first recipe; "" without runs.
  """

  metric: str
  corpus: str
  pairs: float
  compute: float | None
  recipes: tuple[Recipe, ...]
  decisive: str
  starts: tuple[str, ...]
  miniature: tuple[str, ...]
  learned: str


def advise(
  pairs: float,
  *,
  compute: float | None = None,
  samples: float | None = None,
  metric: str = "zero_shot",
  corpus: str = "",
  runs: Sequence[Observation] = (),
) -> Advice:
  """Ranks recipes by the accuracy that the pooled law predicts.

  Every candidate gets the whole budget and all pairs, or those that a quality cut leaves. Because
  the law is monotone in both, a larger budget or more pairs never make the first recipe worse.

  Args:
    pairs: number of image-text pairs available.
    compute: training FLOPs (6 per forward multiply-add). Give this or `samples`.
    samples: number of examples seen in training, counting repetitions.
    metric: a name in `evidence.METRICS`.
    corpus: name of the corpus that the pairs resemble, see `forecasts.corpus_named`.
    runs: runs of your own, from `own_runs`. Without a corpus, the advice is about their data (that
      of the last one) and their models.

  Raises:
    UserError: a number is out of range or a name is unknown.
    NoEvidence: neither a law nor small runs say anything about the question.
  """
  budget = compute or samples or 0
  if not (pairs >= 1 and budget > 0 and math.isfinite(pairs * budget)) or (compute and samples):
    raise UserError(
      f"pairs={pairs:g}, compute={compute}, samples={samples}: give at least one pair and either "
      "compute or samples, above 0. The public runs have 2.9M to 12.8B pairs."
    )
  for name, value in (("pairs", pairs), ("compute", compute), ("samples", samples)):
    if value and value > _ABSURD[name]:
      raise UserError(
        f"{name}={value:g} is beyond any run: the public runs have up to 12.8B pairs, 34B samples "
        f"and 4e22 FLOPs. Give at most {_ABSURD[name]:g}."
      )
  law = updated_law(metric, tuple(runs)) if runs else stored_law(metric)
  # A family stands for itself whatever the number of pairs, or more pairs could be worse.
  data = runs[-1].corpus if runs and not corpus else corpus_named(corpus, 1.0)
  own = bool(runs) and data == runs[-1].corpus
  mine = [r for r in runs if r.corpus == data] if own else []
  choices = candidates_lib.own_candidates(mine) if own else candidates_lib.candidates()
  recipes = _rank(law, pairs, compute, samples, data, own, choices)
  miniature = candidates_lib.miniature(pairs) if pairs < 1e6 and not own else ()
  if not recipes and not miniature:
    raise NoEvidence(
      f"Nothing can be said about {pairs:g} pairs with this budget: the public runs have 1.28M to "
      "34B samples of 2.9M to 12.8B pairs. Raise the budget, or start from published weights."
    )
  return Advice(
    metric,
    data,
    pairs,
    compute,
    tuple(recipes),
    _decisive(law, recipes, data, own),
    () if own else tuple(candidates_lib.starts(metric, recipes[0].forecast if recipes else None)),
    tuple(miniature),
    _learned(recipes, runs, mine, metric) if runs else "",
  )


def _rank(law, pairs, compute, samples, corpus, own, candidates):
  """Recipes for all candidates, best first."""
  asked = []
  for one in candidates:
    seen = samples or compute / one.flops
    kept = pairs * one.quality / 100
    if (seen < _SAMPLES[0] or kept < _PAIRS[0]) and not own:
      continue
    seen = min(seen, _SAMPLES[1])
    # Augmentation was measured on data that is seen many times, so use a subset if need be.
    unique = min(kept, _PAIRS[1], seen / one.least_epochs)
    question = one.observation(law.metric, corpus, unique, seen, own)
    if one.quality < 100 and question.kept < _LEAST_KEPT:
      continue
    asked.append((one, question))
  if not asked:
    return []
  forecasts = law([question for _, question in asked])
  order = sorted(range(len(asked)), key=lambda i: -forecasts[i].accuracy)
  covariance = law.covariance([asked[i][1] for i in order])
  found = []
  for place, i in enumerate(order):
    one, question = asked[i]
    forecast = forecasts[i]
    variance = covariance[0, 0] + covariance[place, place] - 2 * covariance[0, place]
    away = _log_odds(forecast) - _log_odds(forecasts[order[0]])
    spread = math.sqrt(max(variance, 0.0) + 2 * _RUN_NOISE**2)
    better = 0.5 if place == 0 else 0.5 * math.erfc(-away / spread / math.sqrt(2))
    found.append(
      Recipe(
        one,
        question.samples,
        question.unique,
        forecast,
        question.samples * one.flops,
        hyperparameters.recommend(question.samples, one.shape.parameters * 1e6),
        _enough(law, question) if place < 3 else math.nan,
        better,
      )
    )
  return found


def _enough(law, question):
  """Smallest share of the samples that gives all but `_ENOUGH` points."""
  shares = np.geomspace(1, 1 / 64, 25)
  shorter = [
    dataclasses.replace(
      question,
      samples=share * question.samples,
      unique=min(question.unique, share * question.samples),
    )
    for share in shares
  ]
  accuracy = [forecast.accuracy for forecast in law(shorter)]
  return float(min(s for s, a in zip(shares, accuracy) if a >= accuracy[0] - _ENOUGH))


def _log_odds(forecast):
  share = min(max(forecast.accuracy / 100, 1e-4), 1 - 1e-4)
  return math.log((1 - share) / share)


def _decisive(law, recipes, corpus, own):
  """Describes the smallest pair of runs that would show which of the first two is better."""
  if len(recipes) < 2:
    return ""
  first, second = recipes[:2]

  def gap(share):
    """How much better the first is, in standard deviations of two runs, at a share of the size."""
    asked = [
      r.candidate.observation(
        law.metric, corpus, min(r.unique, share * r.samples), share * r.samples, own
      )
      for r in (first, second)
    ]
    one, other = law(asked)
    return (_log_odds(other) - _log_odds(one)) / (_RUN_NOISE * math.sqrt(2))

  full, least = gap(1.0), 0.0 if own else 1e6
  for share in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2):
    if share * first.samples >= least and gap(share) > max(0.7 * full, 0):
      break
  else:
    share = 1.0
  seeds = max(1, math.ceil((NORMAL_90 / max(gap(share), 0.1)) ** 2))
  flops = seeds * share * (first.flops + second.flops)
  if flops > 0.5 * first.flops:
    return (
      f"No run that costs less than half of the budget distinguishes {first.name} from "
      f"{second.name}; take the one that is easier to train."
    )
  return (
    f"Train {first.name} and {second.name} for {share * first.samples:.3g} and "
    f"{share * second.samples:.3g} samples, {seeds} seed{'s' * (seeds > 1)} of each "
    f"({flops:.2g} FLOPs, {100 * flops / first.flops:.0f}% of the budget)."
  )


def _learned(recipes, runs, mine, metric):
  """How your own runs changed the forecast of the first recipe."""
  text = f"{len(runs)} runs of yours are part of the fit."
  if not mine or not recipes:
    return text
  first, after = recipes[0], recipes[0].forecast
  try:
    question = first.candidate.observation(
      metric, mine[0].corpus, first.unique, first.samples, True
    )
    before: Forecast = stored_law(metric)([question])[0]
  except NoEvidence:
    return f"{text} No public run has {METRICS[metric][0]}, so the forecast rests on them."
  width = lambda f: f.high - f.low
  return (
    f"{text} They moved the forecast of {first.name} from {before.accuracy:.1f} to "
    f"{after.accuracy:.1f}%, and the width of its interval from {width(before):.1f} to "
    f"{width(after):.1f} points."
  )
