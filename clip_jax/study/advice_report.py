"""Prints advice, and writes the recommended recipe as a config that `train` runs."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.study import accelerators, candidates
from clip_jax.study.advice import Advice, Recipe
from clip_jax.study.evidence import METRICS
from clip_jax.study.runs_table import TITLES
from clip_jax.study.tables import read_table


def recommended(advice: Advice) -> Recipe | None:
  """The best recipe that this package has a config for."""
  return next((r for r in advice.recipes if r.candidate.trainable), None)


def format_advice(advice: Advice, accelerator: str, utilisation: float, top: int = 3) -> str:
  """Formats advice for the terminal.

  Args:
    advice: the advice.
    accelerator: name in `accelerators.PEAKS`; gives the cost in hours.
    utilisation: fraction of its peak that training reaches.
    top: number of recipes to print.
  """
  own = bool(advice.recipes and advice.recipes[0].candidate.run)
  title = TITLES[advice.metric] if own else METRICS[advice.metric][0]
  lines = []
  if advice.starts and advice.pairs < 1e7:
    lines += _starts(advice)
  if advice.miniature:
    lines.append("Small runs of this package's study, nearest in pairs:")
    lines += [f"  {line}" for line in advice.miniature]
  if not advice.recipes:
    lines.append("The pooled law says nothing about so few pairs or so small a budget.")
    return "\n".join(lines)
  whose = advice.corpus or "pairs of an unknown kind (name the nearest corpus with --corpus)"
  lines.append(f"{title} after training on {whose}, with 90% intervals:")
  first = recommended(advice)
  shown = advice.recipes[:top]
  if first is not None and first not in shown:
    shown = (*shown[: top - 1], first)
  for number, recipe in enumerate(shown, 1):
    lines += _recipe(number, recipe, advice, accelerator, utilisation)
  if first is not None:
    lines.append(f"Recommended: {first.name}. {_share(first)}")
  lines += [f"What would decide: {advice.decisive}"] if advice.decisive else []
  lines += [advice.learned] if advice.learned else []
  published = candidates.published_recipes(advice.metric, advice.compute)
  if published:
    lines.append("Published for no more compute, on other data, so not ranked here:")
    lines += [f"  {line}" for line in published]
  if advice.starts and advice.pairs >= 1e7:
    lines += _starts(advice)
  return "\n".join(lines)


def as_json(advice: Advice, accelerator: str, utilisation: float) -> dict[str, Any]:
  """Advice for machines, with all recipes; accuracies in percent."""
  first = recommended(advice)
  hours = accelerators.flops_per_hour(accelerator, utilisation)
  return {
    "metric": advice.metric,
    "corpus": advice.corpus or "unknown",
    "recommended": first.name if first else None,
    "recipes": [
      {
        "name": r.name,
        "model": r.candidate.shape.name,
        "objective": r.candidate.objective,
        "quality": r.candidate.quality,
        "accuracy": round(r.forecast.accuracy, 3),
        "low": round(r.forecast.low, 3),
        "high": round(r.forecast.high, 3),
        "first_is_better": round(r.better, 3),
        "samples": round(r.samples),
        "unique_pairs": round(r.unique),
        "epochs": round(r.epochs, 3),
        "flops": r.flops,
        "chip_hours": r.flops / hours,
        "octaves": round(r.forecast.octaves, 2),
        "trainable": r.candidate.trainable,
        **dataclasses.asdict(r.settings),
      }
      for r in advice.recipes
    ],
    "decisive": advice.decisive,
    "starts": list(advice.starts),
    "miniature": list(advice.miniature),
    "learned": advice.learned,
  }


def _starts(advice):
  return [
    "Published weights that are already better; fine-tune one of them unless you must train from "
    "scratch:",
    *(f"  {line}" for line in advice.starts),
  ]


def _recipe(number, recipe, advice, accelerator, utilisation):
  f, s = recipe.forecast, recipe.settings
  hours = recipe.flops / accelerators.flops_per_hour(accelerator, utilisation)
  tied = number > 1 and recipe.better < 0.9
  only = "" if recipe.candidate.trainable else "  (forecast only: no config in this package)"
  if recipe.candidate.run:
    only = f"\n     the config of your run {recipe.candidate.run}, with --config.train.samples"
  chance = f"  (the first is better with {100 * recipe.better:.0f}%)" if tied else ""
  text = [
    f"{number:3}. {recipe.name}: {f.accuracy:.1f}% [{f.low:.1f}, {f.high:.1f}]{chance}{only}",
    f"     {recipe.samples:.3g} samples of {recipe.unique:.3g} pairs ({recipe.epochs:.3g} epochs), "
    f"{recipe.flops:.2g} FLOPs, {hours:,.3g} {accelerator}-hours",
    f"     batch {s.batch}, learning rate {s.learning_rate:g}, {s.warmup} steps of warm-up out of "
    f"{s.steps}, AdamW with beta2 {s.beta2:g} and weight decay {s.weight_decay:g}",
    f"     nearest run: {f.nearest.shape.name}, {f.nearest.samples:.3g} samples of "
    f"{f.nearest.unique:.3g} pairs of {f.nearest.corpus}, {f.nearest.accuracy:.1f}% "
    f"({f.nearest.source}); extrapolated by a factor of {2**f.octaves:.2g}",
  ]
  speed = published_speed(recipe.candidate.shape.name) if accelerator == "a100" else None
  if speed:
    text.append(
      f"     published speed: {speed:.0f} samples/s on one A100, "
      f"{recipe.samples / speed / 3600:,.0f} hours"
    )
  return text


def _share(recipe):
  if not math.isfinite(recipe.enough) or recipe.enough > 0.9:
    return "It uses the whole budget."
  return f"{100 * recipe.enough:.0f}% of the budget gives all but 0.1 points of this."


def published_speed(model: str) -> float | None:
  """Median samples per second of a model on one A100 in the sweeps; None without runs there."""
  rows = [
    float(row["samples_per_second_per_gpu"])
    for row in read_table("tuned_sweeps.csv")
    if row["model"] == model and row["gpu"] == "A100" and row["samples_per_second_per_gpu"]
  ]
  return float(np.median(rows)) if rows else None


_TEMPLATE = '''"""{name}: a recipe from python -m clip_jax.study advise.

  python -m clip_jax.train --config={path} --workdir=DIR \\
      --config.data.{source}=DATA --config.data.views.tokenizer.model=MODEL

Forecast: {title} {accuracy:.1f}% [{low:.1f}, {high:.1f}] after {samples} samples of {unique} pairs
of {corpus}. Batch, learning rate and warm-up are those of clip_jax.study.hyperparameters.
"""

from clip_jax.config import call
from clip_jax.configs import clip as clip_config
from clip_jax.study import recipes
from clip_jax.towers.vit import Vit
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config():
  """Builds the config."""
  make = recipes.paper(clip_config.get_config(), "data/pairs")
  config = make(
    arch="ViT-B/32",
    method="{method}",
    aug="{aug}",
    size={size},
    quality={quality:g},
    samples={samples},
  )
  config.model.image = call(Vit, size="{tower}", patch={patch}, image_size=224, remat="full")
  config.data.batch_size = {batch}
  config.optimizer = call(
    adamw,
    learning_rate={learning_rate:g},
    schedule=call(warmup_cosine, warmup={warmup}),
    b2={beta2:g},
    weight_decay={weight_decay:g},
    grad_clip_norm=1.0,
  )
  return config
'''
_METHODS = {"clip": "CLIP", "siglip": "SigLIP", "slip": "SLIP", "flip": "FLIP", "da": "CLIP+DA"}


def write_recipe(advice: Advice, path: Path) -> Recipe:
  """Writes the recommended recipe as a config file; returns it.

  Raises:
    UserError: there is none with a config in this package, or the name does not end in .py.
  """
  recipe = recommended(advice)
  if recipe is None:
    raise UserError("There is no recipe to write: the law says nothing about this budget.")
  if recipe.candidate.run:
    raise UserError(
      f"{recipe.name} is a model of your runs: train it with the config.json of "
      f"{recipe.candidate.run} and --config.train.samples={round(recipe.samples)}, without --out."
    )
  if path.suffix != ".py":
    raise UserError(f"--out={path} must be a Python file, as in --out=recipe.py.")
  c, f = recipe.candidate, recipe.forecast
  tower, patch = c.shape.name.split("-")
  settings = recipe.settings
  limited = c.quality == 100 and recipe.unique < 0.99 * min(advice.pairs, recipe.samples)
  text = _TEMPLATE.format(
    name=recipe.name,
    path=path.name,
    source="source.path" if c.quality == 100 else "source.source.path",
    title=METRICS[advice.metric][0],
    accuracy=f.accuracy,
    low=f.low,
    high=f.high,
    samples=max(round(recipe.samples), settings.batch),
    unique=round(recipe.unique),
    corpus=advice.corpus or "an unknown kind",
    method=_METHODS[c.objective],
    aug="RandAugment" if c.objective == "da" else "none",
    size=round(recipe.unique) if limited else None,
    quality=c.quality,
    tower=tower,
    patch=patch,
    batch=settings.batch,
    learning_rate=settings.learning_rate,
    warmup=settings.warmup,
    beta2=settings.beta2,
    weight_decay=settings.weight_decay,
  )
  with atomic_write(path) as file:
    file.write(text)
  return recipe
