"""Learning rate schedules: factors in [0, 1] of the optimizer's learning rate.

A schedule is a function of the number of updates made so far. The warm-up counts from 1, so that
the first update is not wasted on a learning rate of 0 (big_vision counts from 0).
"""

from collections.abc import Callable
import math
from typing import Annotated, Any

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import Fraction, PositiveInt, Range, checked
from clip_jax.errors import UserError

Schedule = Callable[[Any], jax.Array]  # Updates made so far, int [] -> float32 [] in [0, 1].
Duration = Annotated[int | float, Range(0)]  # In steps, or below 1 for a fraction of the run.


@checked
def warmup_cosine(*, warmup: Duration, total_steps: PositiveInt, end: Fraction = 0.0) -> Schedule:
  """Linear warm-up to 1, then cosine decay to `end` at the end of the run.

  Args:
    warmup: length of the warm-up in steps, or a float below 1 for a fraction of the run.
    total_steps: length of the run in steps; passed to `build`.
    end: final value, as a fraction of the peak.

  Raises:
    UserError: the warm-up takes up the whole run.
  """
  warmup = _steps("warmup", warmup, total_steps)

  def schedule(step):
    progress = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
    return _ramp(step + 1, warmup) * (end + (1 - end) * (1 + jnp.cos(math.pi * progress)) / 2)

  return schedule


@checked
def warmup_rsqrt(
  *,
  warmup: Duration,
  total_steps: PositiveInt,
  timescale: Annotated[int | float, Range(above=0)] = 10_000,
  cooldown: Duration = 0,
) -> Schedule:
  """Linear warm-up to 1, reciprocal square root decay, and linear cool-down to 0.

  The decay is 1 / sqrt(1 + t / timescale), t steps after the warm-up. A run can be continued or
  cooled down from any point before the cool-down, so one run serves several lengths.

  Args:
    warmup: length of the warm-up in steps, or a float below 1 for a fraction of the run.
    total_steps: length of the run in steps; passed to `build`.
    timescale: time after which the factor has fallen to 0.71; in steps or a fraction of the run.
    cooldown: length of the cool-down at the end; in steps or a fraction of the run.

  Raises:
    UserError: warm-up or cool-down takes up the whole run.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.5; the timescale is big_vision's.
  """
  if isinstance(timescale, float) and timescale < 1:
    timescale *= total_steps
  flat = warmup_constant(warmup=warmup, total_steps=total_steps, cooldown=cooldown)
  warmup = _steps("warmup", warmup, total_steps)
  return lambda step: flat(step) * lax.rsqrt(1 + jnp.maximum(step - warmup, 0) / timescale)


@checked
def warmup_constant(
  *, warmup: Duration, total_steps: PositiveInt, cooldown: Duration = 0
) -> Schedule:
  """Linear warm-up to 1, constant, and linear cool-down to 0.

  Args:
    warmup: length of the warm-up in steps, or a float below 1 for a fraction of the run.
    total_steps: length of the run in steps; passed to `build`.
    cooldown: length of the cool-down at the end; in steps or a fraction of the run.

  Raises:
    UserError: warm-up or cool-down takes up the whole run.
  """
  warmup = _steps("warmup", warmup, total_steps)
  cooldown = _steps("cooldown", cooldown, total_steps)
  return lambda step: _ramp(step + 1, warmup) * _ramp(total_steps - step, cooldown)


def _steps(name, value, total_steps):
  """Converts `value`, in steps or a fraction of the run, to steps."""
  steps = round(value * total_steps) if isinstance(value, float) and value < 1 else value
  if steps >= total_steps:
    raise UserError(
      f"{name} {value} takes up the whole run of {total_steps} steps. Set "
      f"--config.optimizer.schedule.{name} to fewer steps, or in the config file to a fraction "
      f"of the run, as in {name}=0.1."
    )
  return steps


def _ramp(step, steps):
  """Linear ramp from 0 at step 0 to 1 at `steps`, then constant; float32."""
  return jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0, 1)
