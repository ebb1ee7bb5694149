"""This recipe at this budget: a run's length from samples, epochs, FLOPs or accelerator-hours."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict

from clip_jax.compute import Compute, count
from clip_jax.config import build
from clip_jax.data.subset import count as number_of
from clip_jax.errors import UserError
from clip_jax.parts import abstract_learner
from clip_jax.planning.chips import CHIPS

# bfloat16 FLOP/s of one accelerator without sparsity, as its maker states it; the older ones cannot
# be planned for.
PEAKS = {
    "t4": 65e12, "v100": 125e12, "l4": 121e12, "v2": 45e12, "v3": 123e12,
    **{name: chip.flops for name, chip in CHIPS.items()}}
UTILISATION = 0.4  # Of the peak, where nothing else is stated.


def compute_of(config: ConfigDict) -> Compute:
  """What an example costs, from the config alone: the data need not be there."""
  learner = abstract_learner(config)
  B, sides = config.data.batch_size, {
      name: tuple(build(view.crop).size) for name, view in config.data.views.images.items()}

  def shape(name):
    if name == "tokens":
      return jax.ShapeDtypeStruct((B, learner.model.text.length), jnp.int32)
    if name in sides:
      return jax.ShapeDtypeStruct((B, *sides[name], 3), jnp.uint8)
    return jax.ShapeDtypeStruct((B,), jnp.int32)  # The example's index.

  return count(learner, {name: shape(name) for name in learner.objective.inputs})


def at_budget(config: ConfigDict, *, samples: int | str | None = None, epochs: float | None = None,
              flops: float | None = None, hours: float | None = None, accelerator: str = "h200",
              utilisation: float = UTILISATION) -> ConfigDict:
  """The config with the length of run that a budget pays for; nothing else is changed.

  Args:
    config: of a training run.
    samples: seen in training, as 340_000_000 or "340M".
    epochs: of the records that it trains on.
    flops: of training, 6 for each multiply-add forward (see `clip_jax.compute`).
    hours: of one accelerator; of eight for an hour, 8.
    accelerator: a name in `PEAKS`; with `hours`.
    utilisation: share of its peak that is reached; with `hours`. `python -m clip_jax.bench step`
      measures it.

  Raises:
    UserError: not exactly one of the four is given, or one is out of its range.
  """
  given = {name: value for name, value in (
      ("samples", samples), ("epochs", epochs), ("flops", flops), ("hours", hours))
           if value is not None}
  if len(given) != 1:
    raise UserError(f"A budget is one of samples, epochs, flops and hours; given are "
                    f"{', '.join(f'{n}={v}' for n, v in given.items()) or 'none'}. Give one.")
  (kind, asked), = given.items()
  value: Any = number_of(samples, 0) if kind == "samples" else asked
  if not value > 0:
    raise UserError(f"A budget of {kind}={given[kind]} pays for nothing. Give more than 0.")
  if kind == "hours":
    value *= flops_an_hour(accelerator, utilisation)
  if kind in ("flops", "hours"):
    value = int(value / compute_of(config).flops)
    if value < config.data.batch_size:
      raise UserError(f"A budget of {kind}={given[kind]} pays for {value} samples, less than one "
                      f"batch of {config.data.batch_size}. Give more, or take a smaller model.")
    kind = "samples"
  config = copy.deepcopy(config)
  with config.unlocked():
    config.train.update({"steps": None, "samples": None, "epochs": None} | {kind: value})
  return config


def flops_an_hour(accelerator: str = "h200", utilisation: float = UTILISATION) -> float:
  """FLOPs that one accelerator makes in an hour.

  Raises:
    UserError: no such accelerator, or a utilisation that is no share.
  """
  if accelerator not in PEAKS:
    raise UserError(f"No peak is known of accelerator {accelerator!r}; known are "
                    f"{', '.join(PEAKS)}. State the budget in flops instead.")
  if not 0 < utilisation <= 1:
    raise UserError(f"utilisation {utilisation} is not a share of the peak, above 0 up to 1.")
  return 3600 * PEAKS[accelerator] * utilisation
