"""Sets the length of a run from a budget in samples, epochs, FLOPs or accelerator-hours."""

import copy
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict

from clip_jax.config import build, call
from clip_jax.costs.flops import count_parameters
from clip_jax.costs.model_compute import ModelCompute, count_compute
from clip_jax.data.subset import count as number_of
from clip_jax.errors import UserError
from clip_jax.model.learner import abstract_learner
from clip_jax.study.accelerators import UTILISATION, flops_per_hour
from clip_jax.study.hyperparameters import recommend
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine
from clip_jax.training.setup import with_examples


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
  tuned: bool = False,
) -> ConfigDict:
  """Returns a copy of the config that trains for as long as a budget allows.

  Args:
    config: config of a training run; it is not modified.
    samples: number of examples seen in training, as 340_000_000 or "340M".
    epochs: number of passes over the training records.
    flops: training FLOPs, 6 per forward multiply-add (see `clip_jax.costs.model_compute`).
    hours: accelerator-hours; one hour on eight accelerators is 8.
    accelerator: a name in `accelerators.PEAKS`; used with `hours`.
    utilisation: fraction of the peak that training reaches; used with `hours`. Measure it with
      `python -m clip_jax.bench step`.
    tuned: whether to set the batch and the optimizer to what public sweeps found best for this
      number of samples and size of model, see `clip_jax.study.hyperparameters`.

  Raises:
    UserError: not exactly one of the four budgets is given, a value is out of range, or a budget in
      epochs is to be tuned.
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
  if tuned and kind == "epochs":
    raise UserError(
      f"tuned=True needs the number of samples, which epochs={amount} does not give without "
      "reading the data. Give the budget as samples."
    )
  if kind in ("flops", "hours"):
    value = int(value / compute_of(config).flops)
    if value < (1 if tuned else config.data.batch_size):
      raise UserError(
        f"The budget {kind}={given[kind]} buys {value} samples, less than one batch "
        f"of {config.data.batch_size}. Raise it or choose a smaller model."
      )
    kind = "samples"
  config = copy.deepcopy(config)
  with config.unlocked():
    config.train.update({"steps": None, "samples": None, "epochs": None} | {kind: value})
    if tuned:
      _tune(config, value)
  return config


def _tune(config, samples):
  """Sets batch, learning rate and warm-up by the rule."""
  best = recommend(samples, count_parameters(nnx.state(abstract_learner(config), nnx.Param)))
  config.data.batch_size = best.batch
  config.optimizer = call(
    adamw,
    learning_rate=best.learning_rate,
    schedule=call(warmup_cosine, warmup=best.warmup),
    b2=best.beta2,
    weight_decay=best.weight_decay,
    grad_clip_norm=1.0,
  )
