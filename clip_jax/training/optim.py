"""Optimizers, and bounds on learned scalars.

  optimizer=call(adamw, learning_rate=1e-3, schedule=call(warmup_cosine, warmup=2000))

Parameters are selected by name: a pattern is a regular expression that matches the whole path, such
as `model/image/stack/blocks/mlp/up/kernel`.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
import re
from typing import Annotated, Any, Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from clip_jax.cli.values import (
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveFraction,
  PositiveInt,
  Range,
  Where,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.model.frozen import Frozen, examples, frozen_params, split_frozen
from clip_jax.parallel.partition import STACKED
from clip_jax.parallel.tree_paths import leaves_by_name, path_name
from clip_jax.training.rate_multipliers import rate_multipliers, scale_by_name
from clip_jax.training.schedules import Schedule


def _is_pattern(text):
  try:
    return bool(re.compile(text))
  except (re.error, RecursionError, OverflowError):
    return False


Decay = Annotated[float, Range(0, below=1)]  # Of a moving average.
MomentumDtype = Literal["float32", "bfloat16", "float16"]
Pattern = Annotated[str, Where(_is_pattern, "a regular expression, such as 'model/image/.*'")]


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` that also exposes its learning rate.

  Attributes:
    init: params -> state of the trained parameters.
    update: (gradients, state, params) -> (updates to be added, next state), of the trained
      parameters, see `model.frozen.split_frozen`.
    learning_rate: updates made so far -> learning rate of the next update, float32 []; None if
      unknown.
    frozen: params, or their shapes -> the parameters that are frozen; None if it freezes none.
    average: (state, trained parameters) -> the parameters to evaluate, for an optimizer that
      averages; None if they are the parameters themselves. `update` then has an argument `bound`,
      which clips a tree of parameters to their bounds.
  """

  init: Callable
  update: Callable
  learning_rate: Callable[[Any], jax.Array] | None
  frozen: Callable[[Any], Frozen] | None = None
  average: Callable[[Any, Any], Any] | None = None


@checked
def adamw(
  *,
  learning_rate: NonNegativeFloat,
  schedule: Schedule,
  b1: Decay = 0.9,
  b2: Decay = 0.98,
  eps: NonNegativeFloat = 1e-6,
  weight_decay: NonNegativeFloat = 0.2,
  decay_params: Sequence[Pattern] = (".*/kernel", ".*/embedding"),
  grad_clip_norm: PositiveFloat | None = None,
  freeze_params: Sequence[Pattern] = (),
  unlock_blocks: NonNegativeInt = 0,
  lr_multipliers: Sequence[tuple[Pattern, PositiveFloat]] = (),
  layer_decay: PositiveFraction | None = None,
  momentum_dtype: MomentumDtype = "float32",
) -> Optimizer:
  """Adam with decoupled weight decay:  p <- p - schedule(t) learning_rate (adam + weight_decay p).

  As in PyTorch, the decay is multiplied by the learning rate: 0.2 at a learning rate of 1e-3 has
  the same effect as 2e-4 in `scaling_vit_adafactor` and in big_vision.

  Args:
    learning_rate: peak learning rate.
    schedule: factor of the learning rate over time; see `clip_jax.training.schedules`.
    b1, b2, eps: Adam's hyperparameters; the defaults are CLIP's for ViTs (for ResNets it used 0.9,
      0.999 and 1e-8).
    weight_decay: decoupled weight decay; CLIP's by default.
    decay_params: patterns of the parameters to decay; by default kernels and token embeddings.
      open_clip also decays what else has two axes: add ".*/positions", and ".*/probe" for a MAP
      head. big_vision and CLIPA decay kernels only.
    grad_clip_norm: maximum global gradient norm; None (default) disables clipping.
    freeze_params: patterns of the parameters to freeze; these cost no backward pass and no
      optimizer state (LiT: "model/image/.*").
    unlock_blocks: number of last blocks, with the final norm and head, that are trained
      nevertheless in towers that freeze_params matches.
    lr_multipliers: pairs of a pattern and a factor of the learning rate; the first pattern that
      matches a parameter counts. They apply in addition to `layer_decay`.
    layer_decay: factor of the learning rate from each block to the one before it, as in BEiT; None
      (default) for equal rates.
    momentum_dtype: dtype of the first moment.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.

  Source: Loshchilov & Hutter 2019, algorithm 2; Radford et al. 2021, table 18.
  """
  return chained(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum_dtype),
    decay_matching(weight_decay, decay_params),
    None,
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    groups=Groups(freeze_params, unlock_blocks, lr_multipliers, layer_decay),
    decay_params=decay_params if weight_decay else (),
  )


@checked
def scaling_vit_adafactor(
  *,
  learning_rate: NonNegativeFloat,
  schedule: Schedule,
  momentum: Decay = 0.9,
  decay_rate: NonNegativeFloat = 0.8,
  b2_cap: Fraction = 0.999,
  eps: NonNegativeFloat = 1e-30,
  min_factored: PositiveInt = 32,
  weight_decay: NonNegativeFloat = 1e-4,
  decay_params: Sequence[Pattern] = (".*/kernel",),
  grad_clip_norm: PositiveFloat | None = None,
  freeze_params: Sequence[Pattern] = (),
  unlock_blocks: NonNegativeInt = 0,
  lr_multipliers: Sequence[tuple[Pattern, PositiveFloat]] = (),
  layer_decay: PositiveFraction | None = None,
  momentum_dtype: MomentumDtype = "bfloat16",
) -> Optimizer:
  """Adafactor as modified for Scaling ViT; its state takes half the memory of the parameters.

  At update t = 1, 2, ... with gradient g:

    v <- b2(t) v + (1 - b2(t)) (g^2 + eps),   b2(t) = min(b2_cap, 1 - t^-decay_rate)
    m <- momentum m + (1 - momentum) g / sqrt(v)                   not debiased, in momentum_dtype
    p <- p - schedule (learning_rate m + weight_decay p)

  where v is factored, that is stored as its means over each of the two largest axes, if both have
  at least `min_factored` elements. Unlike in the original Adafactor, updates are neither clipped
  nor scaled by the parameter.

  The decay is multiplied by the schedule but not by the learning rate, as in big_vision: 1e-4 at a
  learning rate of 1e-3 has the same effect as 0.1 in `adamw`.

  Each block of a stack, which has a leading depth axis, is updated as if it were separate.

  Args:
    learning_rate: peak learning rate.
    schedule: factor of the learning rate over time; see `clip_jax.training.schedules`.
    momentum: decay of the moving average of updates.
    decay_rate, b2_cap: decay of the second moment, as above (SigLIP: b2_cap 0.95).
    eps: added to the square of the gradient.
    min_factored: minimum length of the shorter of the two axes for v to be factored.
    weight_decay: decay per update at the peak of the schedule.
    decay_params: patterns of the parameters to decay.
    grad_clip_norm: maximum global gradient norm (SigLIP and LiT: 1.0); None (default) disables
      clipping.
    freeze_params: patterns of the parameters to freeze; these cost no backward pass and no
      optimizer state (LiT: "model/image/.*").
    unlock_blocks: number of last blocks, with the final norm and head, that are trained
      nevertheless in towers that freeze_params matches.
    lr_multipliers: pairs of a pattern and a factor of the learning rate; the first pattern that
      matches a parameter counts. They apply in addition to `layer_decay`.
    layer_decay: factor of the learning rate from each block to the one before it, as in BEiT; None
      (default) for equal rates.
    momentum_dtype: dtype of the momentum.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.4, as implemented in big_vision.
  """
  return chained(
    _scale_by_factored_rms(decay_rate, b2_cap, eps, min_factored),
    optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype),
    None,
    decay_matching(weight_decay, decay_params),
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    groups=Groups(freeze_params, unlock_blocks, lr_multipliers, layer_decay),
    decay_params=decay_params if weight_decay else (),
  )


def with_bounds(optimizer: Optimizer | optax.GradientTransformation, bounds: Any) -> Optimizer:
  """Wraps an optimizer so that its updates keep each parameter within its bounds.

  The parameter itself is clipped and not its value inside the loss, so the gradient at a bound does
  not vanish and the parameter can move back.

  Args:
    optimizer: the optimizer to wrap.
    bounds: tree like params of (low, high) for every parameter, infinite where there is no bound;
      updates may be of some of the parameters.

  Raises:
    UserError: a lower bound is above the upper one.
  """
  is_pair = lambda x: isinstance(x, tuple)
  pairs = jax.tree_util.tree_leaves_with_path(bounds, is_leaf=is_pair)
  by_name = {path_name(path): pair for path, pair in pairs}
  for name, (low, high) in by_name.items():
    if not low <= high:
      raise UserError(
        f"{name} has at_least={low} above at_most={high}. Swap them, or leave one out."
      )

  average = getattr(optimizer, "average", None)

  def clipped(path, x):
    low, high = by_name[path_name(path)]
    return x if (low, high) == (-math.inf, math.inf) else jnp.clip(x, low, high)

  def one(update, parameter, bound):
    low, high = bound
    if (low, high) == (-math.inf, math.inf):
      return update
    after = parameter + update
    update = jnp.where(after > high, high - parameter, update)
    return jnp.where(after < low, low - parameter, update)

  def update(gradients, state, params):
    # An optimizer that averages keeps all of its points within the bounds.
    bound = lambda tree: jax.tree_util.tree_map_with_path(clipped, tree)
    options = {"bound": bound} if average else {}
    updates, state = optimizer.update(gradients, state, params, **options)
    bounded = lambda path, update, p: one(update, p, by_name[path_name(path)])
    return jax.tree_util.tree_map_with_path(bounded, updates, params), state

  return Optimizer(
    optimizer.init,
    update,
    getattr(optimizer, "learning_rate", None),
    getattr(optimizer, "frozen", None),
    average,
  )


class Groups(NamedTuple):
  """How an optimizer treats groups of parameters; see the arguments of `adamw`."""

  freeze_params: Sequence[str]
  unlock_blocks: int
  lr_multipliers: Sequence[tuple[str, float]]
  layer_decay: float | None


def chained(
  *steps: optax.GradientTransformation | None,
  learning_rate: float,
  schedule: Schedule,
  grad_clip_norm: float | None,
  groups: Groups,
  decay_params: Sequence[str],
) -> Optimizer:
  """Chains gradient clipping, `steps`, the learning rate and the schedule.

  Args:
    *steps: transformations; the entry None stands for the learning rate.
    learning_rate, schedule, grad_clip_norm: as in `adamw`.
    groups: how groups of parameters are treated.
    decay_params: patterns of the parameters to decay, which must match one; () without decay.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.
  """
  if groups.unlock_blocks and not groups.freeze_params:
    raise UserError(
      f"unlock_blocks={groups.unlock_blocks} needs freeze_params, such as ('model/image/.*',)."
    )
  factors: dict[str, Any] = {}

  def frozen(params):
    return frozen_params(params, groups.freeze_params, groups.unlock_blocks)

  rates = [optax.scale(learning_rate)]
  if groups.lr_multipliers or groups.layer_decay is not None:
    rates.append(scale_by_name(factors))
  chain = optax.chain(
    *([optax.clip_by_global_norm(grad_clip_norm)] if grad_clip_norm is not None else []),
    *(one for step in steps for one in (rates if step is None else [step])),
    optax.scale_by_schedule(schedule),
    optax.scale(-1),
  )
  if groups.freeze_params:
    # Nothing is masked: frozen parameters are left out before. States have always had these names.
    chain = optax.chain(
      optax.masked(chain, lambda tree: jax.tree.map(lambda _: True, tree)),
      optax.masked(optax.set_to_zero(), lambda tree: jax.tree.map(lambda _: False, tree)),
    )

  def init(params):
    _check_decay(params, decay_params)
    factors.update(rate_multipliers(params, groups.lr_multipliers, groups.layer_decay))
    return chain.init(split_frozen(params, frozen(params))[0])

  return Optimizer(init, chain.update, lambda step: learning_rate * schedule(step), frozen)


def _check_decay(params, decay_params):
  """Raises UserError if there are patterns and none matches a parameter."""
  names = list(leaves_by_name(params))
  if decay_params and not any(re.fullmatch(p, name) for p in decay_params for name in names):
    raise UserError(
      f"None of the decay_params patterns {tuple(decay_params)} matches a parameter. One must "
      f"match a whole name, such as: {examples(names)}. To disable weight decay, set "
      "weight_decay=0."
    )


def _matching(patterns, tree):
  """Returns a tree of bools, True where a pattern matches the whole name of the parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(re.fullmatch(p, path_name(path)) for p in patterns), tree
  )


def decay_matching(
  weight_decay: float, decay_params: Sequence[str]
) -> optax.GradientTransformation:
  """Adds decoupled decay to the updates of the parameters whose name matches a pattern."""
  return optax.add_decayed_weights(weight_decay, lambda tree: _matching(decay_params, tree))


class _FactoredState(NamedTuple):
  """State of the factored second moment.

  Attributes:
    count: int32 [], updates made.
    moments: {"row": ..., "column": ...} or {"whole": ...} for each parameter.
  """

  count: jax.Array  # type: ignore[assignment]  # Hides tuple.count, which is not needed.
  moments: Any


def _scale_by_factored_rms(decay_rate, b2_cap, eps, min_factored):
  """Divides gradients by the root of their second moment; see `scaling_vit_adafactor`.

  optax.scale_by_factored_rms could factor over the depth axis of a stack of blocks.
  """

  def init(params):
    def one(path, p):
      axes = _factored(path, p.shape, min_factored)
      if axes is None:
        return {"whole": jnp.zeros_like(p)}
      a, b = axes
      without = lambda axis: jnp.zeros(p.shape[:axis] + p.shape[axis + 1 :], p.dtype)
      return {"row": without(b), "column": without(a)}

    return _FactoredState(jnp.zeros([], jnp.int32), jax.tree_util.tree_map_with_path(one, params))

  def update(gradients, state, params=None):
    count = state.count + 1
    b2 = jnp.minimum(b2_cap, 1 - count.astype(jnp.float32) ** -decay_rate)

    def one(path, g, old):
      square = jnp.square(g) + eps
      mean = lambda name, x: b2 * old[name] + (1 - b2) * x
      axes = _factored(path, g.shape, min_factored)
      if axes is None:
        new = {"whole": mean("whole", square)}
        return g * lax.rsqrt(new["whole"]), new
      a, b = axes
      new = {"row": mean("row", square.mean(b)), "column": mean("column", square.mean(a))}
      row, column = jnp.expand_dims(new["row"], b), jnp.expand_dims(new["column"], a)
      return g * lax.rsqrt(row / row.mean(a, keepdims=True)) * lax.rsqrt(column), new

    paths, tree = jax.tree_util.tree_flatten_with_path(gradients)
    before = tree.flatten_up_to(state.moments)  # type: ignore[attr-defined]
    results = [one(path, g, old) for (path, g), old in zip(paths, before, strict=True)]
    updates, moments = zip(*results) if results else ((), ())
    whole = functools.partial(jax.tree.unflatten, tree)
    return whole(updates), _FactoredState(count, whole(moments))

  return optax.GradientTransformation(init, update)


def _factored(path, shape, min_factored):
  """Returns the axes to factor over, the two largest with the longer one last, or None.

  Returns None if the shorter one has fewer than `min_factored` elements. The depth axis of a stack
  of blocks is never included.
  """
  keys = path_name(path).split("/")
  # In a list of blocks, an index follows the name, and there is no depth axis.
  stacked = any(key == STACKED and not after.isdigit() for key, after in itertools.pairwise(keys))
  axes = sorted(range(1 if stacked else 0, len(shape)), key=lambda a: shape[a])[-2:]
  return axes if len(axes) == 2 and shape[axes[0]] >= min_factored else None
