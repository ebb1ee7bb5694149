"""Schedules: how the learning rate goes, as a factor in [0, 1] of the optimizer's.

A schedule is a function of the updates made so far. Its warm-up counts from 1, so the first update
is not wasted on a rate of 0 (big_vision counts from 0).
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.errors import UserError

Schedule = Callable[[Any], jax.Array]  # Updates made so far, int [] -> float32 [] in [0, 1].


def warmup_cosine(*, warmup: int | float, total_steps: int, end: float = 0.0) -> Schedule:
  """Rises linearly to 1, then falls along half a cosine to `end` at the end of the run.

  Args:
    warmup: in steps; below 1 and not an integer, a share of the run.
    total_steps: length of the run; `build` is told it.
    end: where the cosine ends, a share of the peak.

  Raises:
    UserError: the warm-up is negative or leaves no step of the run.
  """
  warmup = _steps("warmup", warmup, total_steps)

  def schedule(step):
    progress = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
    return _ramp(step + 1, warmup) * (end + (1 - end) * (1 + jnp.cos(math.pi * progress)) / 2)

  return schedule


def warmup_rsqrt(*, warmup: int | float, total_steps: int, timescale: int | float = 10_000,
                 cooldown: int | float = 0) -> Schedule:
  """Rises linearly to 1, falls as 1 / sqrt(1 + t / timescale), t since then, and cools down to 0.

  Every point before the cool-down can be gone on from, or cooled down, so one run serves several
  lengths.

  Args:
    warmup: in steps; below 1 and not an integer, a share of the run.
    total_steps: length of the run; `build` is told it.
    timescale: steps after which the rate has fallen to 0.71; in steps or a share of the run.
    cooldown: linear, at the end; in steps or a share of the run.

  Raises:
    UserError: warm-up or cool-down are negative or leave no step of the run; timescale is not
      above 0.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.5; the timescale as in big_vision.
  """
  if isinstance(timescale, float) and timescale < 1:
    timescale *= total_steps
  if timescale <= 0:
    raise UserError(f"timescale {timescale} is not above 0. Set it to the steps after which the "
                    "learning rate has fallen to 0.71, as in timescale=10_000.")
  flat = warmup_constant(warmup=warmup, total_steps=total_steps, cooldown=cooldown)
  warmup = _steps("warmup", warmup, total_steps)
  return lambda step: flat(step) * lax.rsqrt(1 + jnp.maximum(step - warmup, 0) / timescale)


def warmup_constant(*, warmup: int | float, total_steps: int,
                    cooldown: int | float = 0) -> Schedule:
  """Rises linearly to 1, stays there, and cools down linearly to 0.

  Args:
    warmup: in steps; below 1 and not an integer, a share of the run.
    total_steps: length of the run; `build` is told it.
    cooldown: linear, at the end; in steps or a share of the run.

  Raises:
    UserError: warm-up or cool-down are negative or leave no step of the run.
  """
  warmup = _steps("warmup", warmup, total_steps)
  cooldown = _steps("cooldown", cooldown, total_steps)
  return lambda step: _ramp(step + 1, warmup) * _ramp(total_steps - step, cooldown)


def _steps(name, value, total_steps):
  """`value` in steps, where it may be a share of the run."""
  steps = round(value * total_steps) if isinstance(value, float) and value < 1 else value
  if not 0 <= steps < total_steps:
    raise UserError(
        f"{name} {value} does not leave a step of the run's {total_steps}. Set "
        f"--config.optimizer.schedule.{name} to fewer steps, or in the config file to a share of "
        f"the run, as in {name}=0.1.")
  return steps


def _ramp(step, steps):
  """From 0 at 0 to 1 at `steps`, float32, and 1 from there on."""
  return jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0, 1)
