"""Which recipe to train with so many pairs and so much compute; how sure, and from what."""

from collections.abc import Sequence
import dataclasses
import math

from clip_jax.errors import UserError
from clip_jax.report import number
from clip_jax.study import records
from clip_jax.study.evidence import Evidence, Recipe
from clip_jax.study.grids import short
from clip_jax.study.records import Point


@dataclasses.dataclass(frozen=True)
class Advice:
  """Recipes, best first, and what is to be known about them.

  Attributes:
    metric: whose error it is.
    data: "webli" for the paper, or the data of one's own runs.
    recipes: best first; empty where there is no evidence.
    refused: what nothing can be said of, and why.
    changes: what would change the answer.
  """
  metric: str
  data: str
  recipes: tuple[Recipe, ...]
  refused: tuple[str, ...]
  changes: tuple[str, ...]


def advise(pairs: int, *, compute: float | None = None, samples: int | None = None,
           runs: Sequence[Point] = (), metric: str = "zero_shot") -> list[Advice]:
  """Advice from one's own runs, if there are any that tell, and from the paper's.

  Args:
    pairs: that there are.
    compute: FLOPs of training (6 for each multiply-add forward); or
    samples: seen in training.
    runs: one's own.
    metric: a name in `records.TITLES` for which there are numbers.

  Raises:
    UserError: a number out of its range, or no numbers of that metric.
  """
  if pairs < 1 or not (compute or samples or 0) > 0 or (compute and samples):
    raise UserError(f"pairs={pairs}, compute={compute}, samples={samples}: give at least one pair "
                    "and either compute or samples, above 0.")
  found = []
  for data in [*sorted({p.data for p in runs}), "webli"]:
    points = [p for p in (records.paper() if data == "webli" else runs)
              if p.data == data and p.metric == metric]
    try:
      evidence = Evidence(points, data)
    except UserError:
      continue
    best, refused = evidence.ranked(pairs, compute, samples)
    found.append(Advice(metric, data, tuple(best), tuple(refused),
                        tuple(_changes(evidence, best, pairs, compute, samples))))
  if not found:
    known = sorted({p.metric for p in records.paper()})
    raise UserError(f"There is no evidence about {metric!r}: no runs that a law fits. The paper "
                    f"has {', '.join(known)}.")
  return found


def text(found: Sequence[Advice], top: int = 10) -> str:
  """For a person."""
  parts = []
  for advice in found:
    title = records.TITLES[advice.metric]
    whose = "the paper's figures (WebLI, ImageNet and COCO)" if advice.data == "webli" \
        else f"your runs on {advice.data}"
    parts.append(f"From {whose}: {title}, error in percent; nine in ten within the brackets.")
    if not advice.recipes:
      parts.append("Nothing can be said: " + ("; ".join(advice.refused[:3]) or "no evidence")
                   + ". Run a grid of configs/study at your scale.")
      continue
    best = advice.recipes[0]
    for i, one in enumerate(advice.recipes[:top], 1):
      tied = i > 1 and one.low < best.high and best.low < one.high
      flops = "" if math.isnan(one.flops) else f", {one.flops:.1e} FLOP"
      parts.append(
          f"{i:3}. {one.name}: {one.error:.1f} [{one.low:.1f}, {one.high:.1f}]"
          + ("  (not to be told from the first)" if tied else "")
          + f"\n     {number(one.epochs)} epochs, {short(round(one.samples))} samples{flops}"
          + "".join(f"\n     - {line}" for line in one.evidence))
    parts.append(f"To start the first:\n  {best.start}")
    if advice.refused:
      parts.append("Nothing is said of:\n" + "\n".join(f"  {line}" for line in advice.refused[:8]))
    if advice.changes:
      parts.append("What would change the answer:\n" + "\n".join(f"  {c}" for c in advice.changes))
  parts.append("Errors are of the data that the evidence is from; on yours, only the order can be "
               "expected to carry over, and that less the more it is extrapolated.")
  return "\n".join(parts)


def _changes(evidence, best, pairs, compute, samples):
  """What would be best with four times more or less, and what cannot be told apart."""
  if not best:
    return
  first = best[0]
  tied = [r for r in best[1:] if r.low < first.high and first.low < r.high]
  if tied:
    names = "; ".join(r.name for r in tied[:3]) + ("; ..." if len(tied) > 3 else "")
    yield (f"{len(tied)} others are not to be told from the first ({names}): a run of each at your "
           "scale would.")
  grown = lambda x, by: None if x is None else x * by
  for what, args in (
      ("four times the pairs", (4 * pairs, compute, samples)),
      ("a quarter of the pairs", (max(1, pairs // 4), compute, samples)),
      ("four times the budget", (pairs, grown(compute, 4), grown(samples, 4))),
      ("a quarter of the budget", (pairs, grown(compute, 0.25), grown(samples, 0.25)))):
    other, _ = evidence.ranked(*args)
    if not other:
      yield f"With {what} there is no evidence."
    elif other[0].name != first.name:
      one = other[0]
      yield f"With {what}: {one.name}, {one.error:.1f} [{one.low:.1f}, {one.high:.1f}]."
