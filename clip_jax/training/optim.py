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
  PositiveFloat,
  PositiveInt,
  Range,
  Where,
  checked,
)
from clip_jax.errors import UserError
from clip_jax.parallel.partition import STACKED
from clip_jax.parallel.tree_paths import leaves_by_name, path_name
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
    init: params -> state.
    update: (gradients, state, params) -> (updates to be added, next state).
    learning_rate: updates made so far -> learning rate of the next update, float32 []; None if
      unknown.
  """

  init: Callable
  update: Callable
  learning_rate: Callable[[Any], jax.Array] | None


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
    decay_params: patterns of the parameters to decay; by default kernels and token embeddings, as
      in open_clip (big_vision and CLIPA decay kernels only).
    grad_clip_norm: maximum global gradient norm; None (default) disables clipping.
    freeze_params: patterns of the parameters to freeze; these get no optimizer state (LiT:
      "model/image/.*").
    momentum_dtype: dtype of the first moment.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.

  Source: Loshchilov & Hutter 2019, algorithm 2; Radford et al. 2021, table 18.
  """
  return _optimizer(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum_dtype),
    _decay(weight_decay, decay_params),
    optax.scale(learning_rate),
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    freeze_params=freeze_params,
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
    freeze_params: patterns of the parameters to freeze; these get no optimizer state (LiT:
      "model/image/.*").
    momentum_dtype: dtype of the momentum.

  Raises:
    UserError: from `init`, patterns match no parameter or freeze all of them.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.4, as implemented in big_vision.
  """
  return _optimizer(
    _scale_by_factored_rms(decay_rate, b2_cap, eps, min_factored),
    optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype),
    optax.scale(learning_rate),
    _decay(weight_decay, decay_params),
    learning_rate=learning_rate,
    schedule=schedule,
    grad_clip_norm=grad_clip_norm,
    freeze_params=freeze_params,
    decay_params=decay_params if weight_decay else (),
  )


def with_bounds(optimizer: Optimizer | optax.GradientTransformation, bounds: Any) -> Optimizer:
  """Wraps an optimizer so that its updates keep each parameter within its bounds.

  The parameter itself is clipped and not its value inside the loss, so the gradient at a bound does
  not vanish and the parameter can move back.

  Args:
    optimizer: the optimizer to wrap.
    bounds: tree like params of (low, high) for every parameter, infinite where there is no bound.

  Raises:
    UserError: a lower bound is above the upper one.
  """
  is_pair = lambda x: isinstance(x, tuple)
  for path, (low, high) in jax.tree_util.tree_leaves_with_path(bounds, is_leaf=is_pair):
    if not low <= high:
      raise UserError(
        f"{path_name(path)} has at_least={low} above at_most={high}. Swap them, or leave one out."
      )

  def one(update, parameter, bound):
    low, high = bound
    if (low, high) == (-math.inf, math.inf):
      return update
    after = parameter + update
    update = jnp.where(after > high, high - parameter, update)
    return jnp.where(after < low, low - parameter, update)

  def update(gradients, state, params):
    updates, state = optimizer.update(gradients, state, params)
    return jax.tree.map(one, updates, params, bounds), state

  return Optimizer(optimizer.init, update, getattr(optimizer, "learning_rate", None))


def _optimizer(*steps, learning_rate, schedule, grad_clip_norm, freeze_params, decay_params):
  """Chains gradient clipping, `steps` and the schedule for the parameters that are not frozen."""
  chain = optax.chain(
    *([optax.clip_by_global_norm(grad_clip_norm)] if grad_clip_norm is not None else []),
    *steps,
    optax.scale_by_schedule(schedule),
    optax.scale(-1),
  )
  if freeze_params:
    chain = optax.chain(
      optax.masked(
        chain, lambda tree: jax.tree.map(lambda x: not x, _matching(freeze_params, tree))
      ),
      optax.masked(optax.set_to_zero(), lambda tree: _matching(freeze_params, tree)),
    )

  def init(params):
    _check(params, decay_params=decay_params, freeze_params=freeze_params)
    return chain.init(params)

  return Optimizer(init, chain.update, lambda step: learning_rate * schedule(step))


def _check(params, *, decay_params, freeze_params):
  """Raises UserError if patterns match no parameter, or if all parameters are frozen."""
  names = list(leaves_by_name(params))
  matches = lambda patterns: {n for n in names for p in patterns if re.fullmatch(p, n)}
  for pattern in freeze_params:
    if not matches([pattern]):
      raise UserError(
        f"freeze_params pattern {pattern!r} matches no parameter. It must match a whole "
        f"name, such as: {_examples(names)}."
      )
  if freeze_params and len(matches(freeze_params)) == len(names):
    raise UserError(
      f"The freeze_params patterns {tuple(freeze_params)} match every parameter, so nothing is "
      "left to train. Exclude the parameters that should be trained."
    )
  if decay_params and not matches(decay_params):
    raise UserError(
      f"None of the decay_params patterns {tuple(decay_params)} matches a parameter. One must "
      f"match a whole name, such as: {_examples(names)}. To disable weight decay, set "
      "weight_decay=0."
    )


def _examples(names):
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _matching(patterns, tree):
  """Returns a tree of bools, True where a pattern matches the whole name of the parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(re.fullmatch(p, path_name(path)) for p in patterns), tree
  )


def _decay(weight_decay, decay_params):
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
