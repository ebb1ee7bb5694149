"""Schedule-free AdamW: evaluates the average of the iterates, which replaces a decay schedule."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_jax.cli.values import (
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveFraction,
  Range,
  checked,
)
from clip_jax.model.frozen import split_frozen
from clip_jax.training.optim import (
  Decay,
  Groups,
  Optimizer,
  Pattern,
  chained,
  decay_matching,
)
from clip_jax.training.schedules import Schedule


class ScheduleFreeState(NamedTuple):
  """State of `schedule_free_adamw`.

  Attributes:
    updates: int32 [], updates made.
    fast: the iterate z of the base optimizer, like the trained parameters.
    weights: float32 [], sum of the weights of all iterates in the average.
    largest: float32 [], the largest factor of the schedule so far.
    base: state of the base optimizer.
  """

  updates: jax.Array
  fast: Any
  weights: jax.Array
  largest: jax.Array
  base: Any


@checked
def schedule_free_adamw(
  *,
  learning_rate: NonNegativeFloat,
  schedule: Schedule,
  b1: Annotated[float, Range(above=0, below=1)] = 0.9,
  b2: Decay = 0.98,
  eps: NonNegativeFloat = 1e-6,
  weight_decay: NonNegativeFloat = 0.2,
  decay_params: Sequence[Pattern] = (".*/kernel", ".*/embedding"),
  grad_clip_norm: PositiveFloat | None = None,
  freeze_params: Sequence[Pattern] = (),
  unlock_blocks: NonNegativeInt = 0,
  lr_multipliers: Sequence[tuple[Pattern, PositiveFloat]] = (),
  layer_decay: PositiveFraction | None = None,
) -> Optimizer:
  """AdamW whose parameters to evaluate are an average, so that a run needs no length in advance.

  With the iterate z and the average x, gradients are those at y = (1 - b1) z + b1 x, and

    z <- z - schedule(t) learning_rate (g / (sqrt(v) + eps) + weight_decay y)
    x <- (1 - c) x + c z,       c = w_t / (w_1 + ... + w_t),  w_t = max over s <= t of schedule(s)^2

  where v is Adam's second moment, debiased. The parameters of the train state are y, and its moving
  average is x: set `train.evaluate_ema=True`, so that evaluations, `load` and exports use x. A
  schedule should only warm up (`warmup_constant`); the run may then be stopped or prolonged at any
  time.

  Args:
    learning_rate: peak learning rate; the authors use 1 to 10 times that of a cosine schedule.
    schedule: factor of the learning rate over time; see `clip_jax.training.schedules`.
    b1: weight of the average at the point where gradients are taken.
    b2, eps: Adam's hyperparameters.
    weight_decay: decoupled weight decay, at y.
    decay_params: patterns of the parameters to decay.
    grad_clip_norm: maximum global gradient norm; None (default) disables clipping.
    freeze_params, unlock_blocks, lr_multipliers, layer_decay: as in `adamw`.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.

  Source: Defazio et al. 2024 (The Road Less Scheduled), sec. 4, algorithm 1, as in
  `optax.contrib.schedule_free_adamw`.
  """
  base = chained(
    optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True),
    decay_matching(weight_decay, decay_params),
    None,
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    groups=Groups(freeze_params, unlock_blocks, lr_multipliers, layer_decay),
    decay_params=decay_params if weight_decay else (),
  )
  # The point of the gradient and the average determine each other, given the fast iterate.
  point = lambda fast, average: jax.tree.map(lambda z, x: (1 - b1) * z + b1 * x, fast, average)
  average_of = lambda fast, params: jax.tree.map(lambda z, y: (y - (1 - b1) * z) / b1, fast, params)

  def init(params):
    trained = split_frozen(params, base.frozen(params))[0]
    zero = jnp.float32(0)
    copy = jax.tree.map(jnp.copy, trained)  # The step donates both.
    return ScheduleFreeState(jnp.int32(0), copy, zero, zero, base.init(params))

  def update(gradients, state, params, bound=lambda tree: tree):
    moves, of_base = base.update(gradients, state.base, params)
    fast = jax.tree.map(jnp.add, state.fast, moves)
    largest = jnp.maximum(state.largest, jnp.asarray(schedule(state.updates), jnp.float32))
    weights = state.weights + largest**2
    c = largest**2 / jnp.maximum(weights, 1e-30)
    average = average_of(state.fast, params)
    average = jax.tree.map(lambda x, z: (1 - c) * x + c * z, average, fast)
    fast, average = bound(fast), bound(average)
    updates = jax.tree.map(jnp.subtract, point(fast, average), params)
    return updates, ScheduleFreeState(state.updates + 1, fast, weights, largest, of_base)

  return Optimizer(
    init,
    update,
    base.learning_rate,
    base.frozen,
    lambda state, params: average_of(state.fast, params),
  )
