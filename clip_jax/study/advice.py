"""Ranks recipes for a number of pairs and a training budget, with uncertainty and evidence."""

from collections.abc import Sequence
import dataclasses
import math

from clip_jax.cli.formatting import number
from clip_jax.errors import UserError
from clip_jax.study import runs_table
from clip_jax.study.designs import short
from clip_jax.study.predictor import Predictor, Recipe
from clip_jax.study.runs_table import RunResult


@dataclasses.dataclass(frozen=True)
class Advice:
  """Recipes ranked by predicted error, from the evidence of one data set.

  Attributes:
    metric: name in `runs_table.TITLES` of the metric that is predicted.
    data: "webli" for the paper's numbers, otherwise the data name of your runs.
    recipes: best first; empty if there is no evidence.
    unpredicted: recipes without a prediction, each with the reason.
    changes: how the ranking would change with more or less data or compute.
  """

  metric: str
  data: str
  recipes: tuple[Recipe, ...]
  unpredicted: tuple[str, ...]
  changes: tuple[str, ...]


def advise(
  pairs: int,
  *,
  compute: float | None = None,
  samples: int | None = None,
  runs: Sequence[RunResult] = (),
  metric: str = "zero_shot",
) -> list[Advice]:
  """Ranks recipes by your own runs, where a law fits them, and by the paper's.

  Args:
    pairs: number of image-text pairs available.
    compute: training FLOPs (6 per forward multiply-add). Give this or `samples`.
    samples: number of examples seen in training, counting repetitions.
    runs: results of your own runs.
    metric: a name in `runs_table.TITLES`.

  Returns:
    One `Advice` per data set with evidence, your own first.

  Raises:
    UserError: a number is out of range, or there are no results for the metric.
  """
  if pairs < 1 or not (compute or samples or 0) > 0 or (compute and samples):
    raise UserError(
      f"pairs={pairs}, compute={compute}, samples={samples}: give at least one pair "
      "and either compute or samples, above 0."
    )
  found = []
  for data in [*sorted({p.data for p in runs}), "webli"]:
    points = [
      p
      for p in (runs_table.paper_results() if data == "webli" else runs)
      if p.data == data and p.metric == metric
    ]
    try:
      predictor = Predictor(points, data)
    except UserError:
      continue
    best, unpredicted = predictor.rank(pairs, compute, samples)
    found.append(
      Advice(
        metric,
        data,
        tuple(best),
        tuple(unpredicted),
        tuple(_changes(predictor, best, pairs, compute, samples)),
      )
    )
  if not found:
    known = sorted({p.metric for p in runs_table.paper_results()})
    raise UserError(
      f"There is no evidence about {metric!r}: no law could be fitted to its runs. "
      f"The paper has {', '.join(known)}."
    )
  return found


def format_advice(found: Sequence[Advice], top: int = 10) -> str:
  """Formats advice for the terminal, with at most `top` recipes per data set."""
  parts = []
  for advice in found:
    title = runs_table.TITLES[advice.metric]
    whose = (
      "the paper's figures (WebLI, ImageNet and COCO)"
      if advice.data == "webli"
      else f"your runs on {advice.data}"
    )
    parts.append(f"From {whose}: {title} error in percent, with 90% intervals in brackets.")
    if not advice.recipes:
      parts.append(
        "No prediction: "
        + ("; ".join(advice.unpredicted[:3]) or "no evidence")
        + ". Run a grid of configs/study at your scale."
      )
      continue
    best = advice.recipes[0]
    for i, one in enumerate(advice.recipes[:top], 1):
      tied = i > 1 and one.low < best.high and best.low < one.high
      flops = "" if math.isnan(one.flops) else f", {one.flops:.1e} FLOP"
      parts.append(
        f"{i:3}. {one.name}: {one.error:.1f} [{one.low:.1f}, {one.high:.1f}]"
        + ("  (not distinguishable from the first)" if tied else "")
        + f"\n     {number(one.epochs)} epochs, {short(round(one.samples))} samples{flops}"
        + "".join(f"\n     - {line}" for line in one.evidence)
      )
    parts.append(f"To train the first:\n  {best.command}")
    if advice.unpredicted:
      parts.append(
        "No prediction for:\n" + "\n".join(f"  {line}" for line in advice.unpredicted[:8])
      )
    if advice.changes:
      parts.append("What would change the answer:\n" + "\n".join(f"  {c}" for c in advice.changes))
  parts.append(
    "Errors refer to the data behind the evidence. On other data, expect only the "
    "ranking to carry over, and less so the further it is extrapolated."
  )
  return "\n".join(parts)


def _changes(predictor, best, pairs, compute, samples):
  """Yields which recipes tie with the best, and the best at 4x or 1/4 the pairs or budget."""
  if not best:
    return
  first = best[0]
  tied = [r for r in best[1:] if r.low < first.high and first.low < r.high]
  if tied:
    names = "; ".join(r.name for r in tied[:3]) + ("; ..." if len(tied) > 3 else "")
    yield (
      f"{len(tied)} others are not distinguishable from the first ({names}); train each at "
      "your scale to decide."
    )
  scaled = lambda x, by: None if x is None else x * by
  for what, args in (
    ("four times the pairs", (4 * pairs, compute, samples)),
    ("a quarter of the pairs", (max(1, pairs // 4), compute, samples)),
    ("four times the budget", (pairs, scaled(compute, 4), scaled(samples, 4))),
    ("a quarter of the budget", (pairs, scaled(compute, 0.25), scaled(samples, 0.25))),
  ):
    other, _ = predictor.rank(*args)
    if not other:
      yield f"With {what}: no evidence."
    elif other[0].name != first.name:
      one = other[0]
      yield f"With {what}: {one.name}, {one.error:.1f} [{one.low:.1f}, {one.high:.1f}]."
