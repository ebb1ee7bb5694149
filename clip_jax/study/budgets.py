"""Sets the length of a run from a budget in samples, epochs, FLOPs or accelerator-hours."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict

from clip_jax.config import build
from clip_jax.costs.model_compute import ModelCompute, count_compute
from clip_jax.data.subset import count as number_of
from clip_jax.errors import UserError
from clip_jax.model.learner import abstract_learner
from clip_jax.planning.chips import CHIPS
from clip_jax.training.setup import with_examples

# Peak dense bfloat16 FLOP/s of one accelerator, from its data sheet. The planner (CHIPS) does not
# cover the older ones.
PEAKS = {
  "t4": 65e12,
  "v100": 125e12,
  "l4": 121e12,
  "v2": 45e12,
  "v3": 123e12,
  **{name: chip.flops for name, chip in CHIPS.items()},
}
UTILISATION = 0.4  # Default fraction of the peak that training reaches.


def compute_of(config: ConfigDict) -> ModelCompute:
  """Counts the compute per example of a config, without reading its data."""
  learner = abstract_learner(with_examples(config, 1))  # Their number changes no FLOPs.
  B, sides = (
    config.data.batch_size,
    {name: tuple(build(view.crop).size) for name, view in config.data.views.images.items()},
  )

  def shape(name):
    if name == "tokens":
      captions = config.data.views.get("captions_per_image", 1)
      several = () if captions == 1 else (captions,)
      return jax.ShapeDtypeStruct((B, *several, learner.model.text.context_length), jnp.int32)
    if name in sides:
      return jax.ShapeDtypeStruct((B, *sides[name], 3), jnp.uint8)
    return jax.ShapeDtypeStruct((B,), jnp.int32)  # The example's index or group.

  return count_compute(learner, {name: shape(name) for name in learner.objective.inputs})


def at_budget(
  config: ConfigDict,
  *,
  samples: int | str | None = None,
  epochs: float | None = None,
  flops: float | None = None,
  hours: float | None = None,
  accelerator: str = "h200",
  utilisation: float = UTILISATION,
) -> ConfigDict:
  """Returns a copy of the config that trains for as long as a budget allows.

  Args:
    config: config of a training run; it is not modified.
    samples: number of examples seen in training, as 340_000_000 or "340M".
    epochs: number of passes over the training records.
    flops: training FLOPs, 6 per forward multiply-add (see `clip_jax.costs.model_compute`).
    hours: accelerator-hours; one hour on eight accelerators is 8.
    accelerator: a name in `PEAKS`; used with `hours`.
    utilisation: fraction of the peak that training reaches; used with `hours`. Measure it with
      `python -m clip_jax.bench step`.

  Raises:
    UserError: not exactly one of the four budgets is given, or a value is out of range.
  """
  given = {
    name: value
    for name, value in (
      ("samples", samples),
      ("epochs", epochs),
      ("flops", flops),
      ("hours", hours),
    )
    if value is not None
  }
  if len(given) != 1:
    raise UserError(
      f"Give exactly one budget out of samples, epochs, flops and hours; got "
      f"{', '.join(f'{n}={v}' for n, v in given.items()) or 'none'}."
    )
  ((kind, amount),) = given.items()
  value: Any = number_of(samples, 0) if kind == "samples" else amount
  if not value > 0:
    raise UserError(f"The budget {kind}={given[kind]} must be above 0.")
  if kind == "hours":
    value *= flops_per_hour(accelerator, utilisation)
  if kind in ("flops", "hours"):
    value = int(value / compute_of(config).flops)
    if value < config.data.batch_size:
      raise UserError(
        f"The budget {kind}={given[kind]} buys {value} samples, less than one batch "
        f"of {config.data.batch_size}. Raise it or choose a smaller model."
      )
    kind = "samples"
  config = copy.deepcopy(config)
  with config.unlocked():
    config.train.update({"steps": None, "samples": None, "epochs": None} | {kind: value})
  return config


def flops_per_hour(accelerator: str = "h200", utilisation: float = UTILISATION) -> float:
  """FLOPs that one accelerator computes in an hour.

  Raises:
    UserError: the accelerator is unknown, or the utilisation is outside (0, 1].
  """
  if accelerator not in PEAKS:
    raise UserError(
      f"The peak FLOP/s of accelerator {accelerator!r} is unknown; known are "
      f"{', '.join(PEAKS)}. Choose one of them, or give the budget in FLOPs."
    )
  if not 0 < utilisation <= 1:
    raise UserError(
      f"utilisation={utilisation} must be a fraction of the peak, above 0 and at most 1."
    )
  return 3600 * PEAKS[accelerator] * utilisation
