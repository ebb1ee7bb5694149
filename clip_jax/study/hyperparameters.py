"""Batch size, learning rate, warm-up and steps for a number of samples, and the cost of others.

The rule is fitted to the 562 runs of `tuned_sweeps.csv` (arXiv 2506.04598): AdamW with beta2 0.95,
weight decay 0.2, clipped gradients and a cosine schedule, 1.28M to 3.07B samples. Within a model
and number of samples, the log-odds of the error rise with the squared distances, in octaves, of
the batch, the learning rate and the warm-up from their best values:

  log2 batch = b0 + b1 log2(samples / 1e8)
  log2 rate = r0 + r1 log2(samples / 1e8) + r2 log2(parameters / 1.5e8) + r3 log2(batch / 8192)
  warm-up = T / (1 / fraction + T / longest),  T = samples / batch
"""

from collections.abc import Mapping
import dataclasses
import math

import numpy as np
from scipy import optimize

from clip_jax.errors import UserError
from clip_jax.study.tables import read_table

BETA2, WEIGHT_DECAY = 0.95, 0.2  # Of all runs of the sweeps; other values were not tried.
FEW_STEPS = 2500  # Steps of the shortest run of the sweeps.
_LARGEST_RATE = 4e-3  # Of those that were best in a sweep or nearly so; no extrapolation above.
_LEAST_SAMPLES = 1e6
_LARGEST_BATCH = 2**16  # The largest power of 2 below the largest batch that was best, 90,624.
SHORT_WARMUP = 100  # Steps; the shortest warm-up of the sweeps has 1,000.
# Parameter -> (prior mean, prior deviation). The sweeps vary the batch at 5 sizes only, so b1 rests
# on the batches that their authors chose: 512 at 1.28M samples to 90k at 3B.
_PRIOR = {
  "b0": (12.8, 1.0),
  "b1": (0.55, 0.01),
  "batch_above": (-4.0, 1.0),
  "batch_below": (-4.0, 1.0),
  "r0": (-9.5, 1.0),
  "r1": (0.0, 0.1),
  "r2": (-0.4, 0.1),
  "r3": (0.4, 0.2),
  "rate_above": (-3.0, 1.0),
  "rate_below": (-3.5, 1.0),
  "fraction": (-0.7, 0.1),
  "longest": (12.5, 0.7),
  "warmup_both": (-4.5, 1.0),
}
_NAMES = tuple(_PRIOR)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hyperparameters of a run.

  Attributes:
    batch: batch size.
    learning_rate: peak learning rate of AdamW.
    warmup: steps of linear warm-up.
    steps: number of steps.
    beta2, weight_decay: of AdamW; the same in all sweeps.
  """

  batch: int
  learning_rate: float
  warmup: int
  steps: int
  beta2: float = BETA2
  weight_decay: float = WEIGHT_DECAY


def recommend(
  samples: float, parameters: float, *, batch: int | None = None, rule: Mapping | None = None
) -> Settings:
  """Best hyperparameters for a number of samples and a model.

  Args:
    samples: number of examples seen in training.
    parameters: number of parameters of both towers.
    batch: batch size, if it is given; by default the best power of 2.
    rule: a rule of `fit_rule`; by default the stored one.

  Raises:
    UserError: a number is not above 0, or the batch is larger than the run.
  """
  if not (samples >= 1 and parameters > 0 and math.isfinite(samples * parameters)):
    raise UserError(
      f"samples={samples:g} and parameters={parameters:g} must be at least 1; the sweeps have "
      "1.28M to 3.07B samples and 43M to 990M parameters."
    )
  if batch is not None and not 1 <= batch <= samples:
    raise UserError(f"batch={batch} must be between 1 and the {samples:g} samples of the run.")
  best = _best(rule or stored_rule(), samples, parameters, batch)
  size = batch or max(1, min(2 ** round(best["batch"]), int(samples)))
  best = _best(rule or stored_rule(), samples, parameters, size)
  steps = max(1, int(samples / size))
  return Settings(
    size,
    float(f"{2 ** best['rate']:.2g}"),
    max(1, min(round(2 ** best["warmup"]), steps - 1)),
    steps,
  )


def penalty(
  samples: float,
  parameters: float,
  batch: float,
  learning_rate: float | None = None,
  warmup: float | None = None,
  rule: Mapping | None = None,
) -> float:
  """Expected rise of the log-odds of the error over that with the best hyperparameters, at least 0.

  A learning rate or warm-up that is None is the best one for the batch.
  """
  rule = rule or stored_rule()
  best = _best(rule, samples, parameters, batch)
  free = _best(rule, samples, parameters, None)
  rate = best["rate"] if learning_rate is None else math.log2(learning_rate)
  steps = best["warmup"] if warmup is None else math.log2(max(warmup, 1))
  at = np.array([math.log2(batch) - free["batch"], rate - best["rate"], steps - best["warmup"]])
  return float(_rise(rule, *at))


def stored_rule() -> Mapping[str, float]:
  """The rule that comes with the package."""
  from clip_jax.study.law_store import stored

  return stored()["hyperparameters"]


def warnings(samples: float, parameters: float, batch: int, warmup: int) -> list[str]:
  """Says in which ways a run is unlike those of the sweeps that worked; empty if it is like them.

  Args:
    samples: number of examples seen in training.
    parameters: number of parameters of both towers.
    batch: batch size.
    warmup: steps of warm-up.
  """
  steps, found = int(samples / batch), []
  if samples < _LEAST_SAMPLES:
    return found  # The sweeps say nothing about runs this small.
  best = recommend(samples, parameters)
  if steps < FEW_STEPS and batch > 2 * best.batch:
    found.append(
      f"The run has {steps} steps of batch {batch}. In public runs the best batch for "
      f"{samples:.3g} samples is about {best.batch}, for {best.steps} steps with a learning rate "
      f"near {best.learning_rate:g} and {best.warmup} steps of warm-up."
    )
  own = recommend(samples, parameters, batch=batch)
  if warmup < SHORT_WARMUP and warmup < own.warmup / 4:
    found.append(
      f"The warm-up has {warmup} steps. In public runs about {own.warmup} are best for {steps} "
      "steps."
    )
  return found


def sweep_runs() -> dict[str, np.ndarray]:
  """The runs of the sweeps by column, float [n] each; `group` numbers models and sample counts."""
  sizes = {
    r["model"]: float(r["parameters_m"]) * 1e6
    for r in read_table("tuned_models.csv")
    if r["objective"] == "clip"
  }
  rows = [r for r in read_table("tuned_sweeps.csv") if r["warmup_steps"]]
  column = lambda name: np.array([float(r[name]) for r in rows])
  keys = [(r["model"], r["samples_seen"]) for r in rows]
  order = sorted(set(keys))
  return {
    "samples": column("samples_seen"),
    "parameters": np.array([sizes[r["model"]] for r in rows]),
    "batch": column("batch"),
    "learning_rate": column("learning_rate"),
    "warmup": column("warmup_steps"),
    "accuracy": column("imagenet_zero_shot"),
    "group": np.array([order.index(key) for key in keys]),
  }


def fit_rule(keep: np.ndarray | None = None) -> dict[str, float]:
  """Fits the rule to the sweeps, or to the runs among them that bool [n] `keep` marks.

  The accuracy of each model and number of samples is free; only differences within count.
  """
  runs = sweep_runs()
  if keep is not None:
    runs = {name: values[keep] for name, values in runs.items()}
  share = np.clip(runs["accuracy"] / 100, 1e-3, 0.999)
  measured = np.log((1 - share) / share)
  noise = np.hypot(0.03, 0.1 / (100 * share * (1 - share)))
  groups = np.unique(runs["group"], return_inverse=True)[1]
  mean, deviation = np.array(list(_PRIOR.values())).T

  def residuals(theta):
    rise = rises(dict(zip(_NAMES, theta)), runs)
    total = lambda values: np.bincount(groups, values / noise**2)
    level = total(measured - rise) / total(np.ones_like(rise))
    return np.concatenate([(measured - rise - level[groups]) / noise, (theta - mean) / deviation])

  found = optimize.least_squares(residuals, mean, loss="soft_l1", f_scale=2.0)
  return {name: round(float(value), 4) for name, value in zip(_NAMES, found.x)}


def rises(rule: Mapping, runs: Mapping[str, np.ndarray]) -> np.ndarray:
  """Expected rise of the log-odds of each run's error over the best hyperparameters, float [n]."""
  best = _best(rule, runs["samples"], runs["parameters"], runs["batch"])
  free = _best(rule, runs["samples"], runs["parameters"], None)
  return _rise(
    rule,
    np.log2(runs["batch"]) - free["batch"],
    np.log2(runs["learning_rate"]) - best["rate"],
    np.log2(runs["warmup"]) - best["warmup"],
  )


def _best(rule, samples, parameters, batch):
  """Logarithms to the base of 2 of the best batch, learning rate and warm-up for `batch`."""
  size = np.log2(samples / 1e8)
  best = np.minimum(rule["b0"] + rule["b1"] * size, math.log2(_LARGEST_BATCH))
  own = best if batch is None else np.log2(batch)
  rate = rule["r0"] + rule["r1"] * size + rule["r2"] * np.log2(parameters / 1.5e8)
  rate = np.minimum(rate + rule["r3"] * (own - 13), math.log2(_LARGEST_RATE))
  steps = samples / 2.0**own
  warmup = steps / (2.0 ** -rule["fraction"] + steps / 2.0 ** rule["longest"])
  return {"batch": best, "rate": rate, "warmup": np.log2(np.maximum(warmup, 1))}


def _rise(rule, batch, rate, warmup):
  """Sum of weighted squares of the distances from the best, in octaves."""
  square = lambda d, above, below: d**2 * np.exp(np.where(d > 0, rule[above], rule[below]))
  return (
    square(batch, "batch_above", "batch_below")
    + square(rate, "rate_above", "rate_below")
    + square(warmup, "warmup_both", "warmup_both")
  )
