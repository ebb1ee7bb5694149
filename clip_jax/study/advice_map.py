"""A map of the advice: the best recipe and its accuracy for many numbers of pairs and budgets."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from clip_jax.study.advice import Recipe, advise
from clip_jax.study.evidence import METRICS, NoEvidence
from clip_jax.study.plots import COLOURS, import_matplotlib

PAIRS = (1e6, 1e7, 1e8, 1e9)
BUDGETS = tuple(10.0**k for k in range(17, 23))  # FLOPs.


@dataclasses.dataclass(frozen=True)
class Place:
  """A point of the map.

  Attributes:
    pairs: number of pairs.
    compute: budget in FLOPs.
    recipe: the best recipe for them.
  """

  pairs: float
  compute: float
  recipe: Recipe


def places(
  metric: str = "zero_shot",
  corpus: str = "",
  *,
  pairs: Sequence[float] = PAIRS,
  budgets: Sequence[float] = BUDGETS,
) -> list[Place]:
  """Returns the points of the map about which there is evidence, see `advice.advise`.

  Raises:
    UserError: the metric or the corpus is unknown.
  """
  found = []
  for number in pairs:
    for compute in budgets:
      try:
        recipes = advise(number, compute=compute, metric=metric, corpus=corpus).recipes
      except NoEvidence:
        continue
      found += [Place(number, compute, recipe) for recipe in recipes[:1]]
  return found


def draw(found: Sequence[Place], path: Path, metric: str = "zero_shot") -> None:
  """Draws accuracy against compute, a line for each number of pairs, and saves it as PNG.

  Each point is labelled with its model; the marker says what to do besides plain CLIP training.

  Raises:
    UserError: matplotlib is not installed.
  """
  figure = import_matplotlib().figure.Figure(figsize=(8, 4.6), layout="constrained")
  axes = figure.subplots()
  for number, pairs in enumerate(sorted({place.pairs for place in found}, reverse=True)):
    line = [place for place in found if place.pairs == pairs]
    x = [place.compute for place in line]
    y = [place.recipe.forecast.accuracy for place in line]
    colour = COLOURS[number]
    axes.plot(x, y, color=colour, lw=2)
    axes.annotate(
      f"{_count(pairs)} pairs", (x[-1], y[-1]), (9, -3), textcoords="offset points", color=colour
    )
    for place in line:
      _mark(axes, place, colour)
      if number == 0 or _stands_alone(found, place):
        _label(axes, place, colour, above=number == 0)
  for marker, meaning in (("o", "the best 40% or 60% of the pairs"), ("D", "with RandAugment")):
    axes.plot([], [], marker, color="0.4", label=meaning)
  if any(p.recipe.candidate.objective != "da" and p.recipe.candidate.quality == 100 for p in found):
    axes.plot([], [], "s", color="0.4", label="neither")
  axes.set_xscale("log")
  axes.set_xlim(right=max(place.compute for place in found) * 6)
  axes.set_xlabel("training compute (FLOPs)")
  axes.set_ylabel(f"forecast of {METRICS[metric][0]} (%)")
  axes.grid(color="#dddddd", lw=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, loc="upper left")
  figure.savefig(path, dpi=110)


def _mark(axes: Any, place: Place, colour: str) -> None:
  candidate = place.recipe.candidate
  marker = "D" if candidate.objective == "da" else "o" if candidate.quality < 100 else "s"
  axes.plot(place.compute, place.recipe.forecast.accuracy, marker, color=colour, ms=6)


def _label(axes: Any, place: Place, colour: str, *, above: bool) -> None:
  """Writes the name of the model above or below its point."""
  model = place.recipe.name.partition(",")[0].removeprefix("ViT-")
  at = (place.compute, place.recipe.forecast.accuracy)
  shift = (0, 8) if above else (0, -15)
  style = {"textcoords": "offset points", "ha": "center", "fontsize": 9, "color": colour}
  axes.annotate(model, at, shift, **style)


def _stands_alone(found: Sequence[Place], place: Place) -> bool:
  """Whether the label of a point fits between it and the other lines."""
  others = [p for p in found if p.compute == place.compute and p.pairs != place.pairs]
  return all(abs(p.recipe.forecast.accuracy - place.recipe.forecast.accuracy) > 3 for p in others)


def _count(value: float) -> str:
  return f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M"
