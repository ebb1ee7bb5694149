"""Optimizers, and what keeps learned scalars within their bounds.

  optimizer=call(adamw, learning_rate=1e-3, schedule=call(warmup_cosine, warmup=2000))

Parameters are chosen by name: a pattern is a regular expression for the whole path, such as
`model/image/stack/blocks/mlp/up/kernel`.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from clip_jax.errors import UserError
from clip_jax.schedules import Schedule
from clip_jax.sharding import STACKED


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` that says its learning rate.

  Attributes:
    init: params -> state.
    update: (gradients, state, params) -> (updates to be added, next state).
    learning_rate: updates made so far -> float32 [], of the update to come; None where unknown.
  """
  init: Callable
  update: Callable
  learning_rate: Callable[[Any], jax.Array] | None


def adamw(*, learning_rate: float, schedule: Schedule, b1: float = 0.9, b2: float = 0.98,
          eps: float = 1e-6, weight_decay: float = 0.2,
          decayed: Sequence[str] = (".*/kernel", ".*/embedding"), clip: float | None = None,
          frozen: Sequence[str] = (), momentum_dtype: str = "float32") -> Optimizer:
  """Adam with decoupled weight decay:  p <- p - schedule(t) learning_rate (adam + weight_decay p).

  As in PyTorch, the decay is multiplied by the learning rate. That makes 0.2 at a learning rate of
  1e-3 what 2e-4 is to `scaling_vit_adafactor` and to big_vision.

  Args:
    learning_rate: at the peak of the schedule.
    b1, b2, eps: of Adam; the defaults are CLIP's for ViT (0.9, 0.999 and 1e-8 for ResNet).
    weight_decay: CLIP's by default.
    decayed: patterns of the parameters that decay; kernels and token embeddings by default, as in
      open_clip (big_vision and CLIPA: kernels alone).
    clip: global norm that gradients are cut to; as they are by default.
    frozen: patterns of parameters that stay as they are, with no optimizer state (LiT:
      "model/image/.*").
    momentum_dtype: what the first moment is stored in.

  Raises:
    UserError: `clip` is not above 0; or, from `init`, a pattern matches no parameter.

  Source: Loshchilov & Hutter 2019, algorithm 2; Radford et al. 2021, table 18.
  """
  return _optimizer(
      optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum_dtype),
      _decay(weight_decay, decayed), optax.scale(learning_rate),
      learning_rate=learning_rate, schedule=schedule, clip=clip, frozen=frozen,
      decayed=decayed if weight_decay else ())


def scaling_vit_adafactor(*, learning_rate: float, schedule: Schedule, momentum: float = 0.9,
                          decay_rate: float = 0.8, b2_cap: float = 0.999, eps: float = 1e-30,
                          min_factored: int = 32, weight_decay: float = 1e-4,
                          decayed: Sequence[str] = (".*/kernel",), clip: float | None = None,
                          frozen: Sequence[str] = (),
                          momentum_dtype: str = "bfloat16") -> Optimizer:
  """Adafactor as it trained the scaling ViTs: half the memory of the parameters.

  At update t = 1, 2, ... with gradient g:

    v <- b2(t) v + (1 - b2(t)) (g^2 + eps),   b2(t) = min(b2_cap, 1 - t^-decay_rate)
    m <- momentum m + (1 - momentum) g / sqrt(v)                   not debiased, in momentum_dtype
    p <- p - schedule (learning_rate m + weight_decay p)

  where v is kept as its means over each of the two largest axes, if both have `min_factored`
  elements. Unlike the first Adafactor, updates are not clipped and not scaled by the parameter.

  The decay is multiplied by the schedule, not by the learning rate, as in big_vision: 1e-4 at a
  learning rate of 1e-3 is what 0.1 is to `adamw`.

  A stack of blocks, with its leading axis of depth, is updated as each block would be by itself.

  Args:
    learning_rate: at the peak of the schedule.
    momentum: of the mean of updates.
    decay_rate, b2_cap: how fast the second moment forgets (SigLIP: b2_cap 0.95).
    eps: added to the square of the gradient.
    min_factored: the shorter of the two axes has this length or v is kept whole.
    weight_decay: per update, at the peak of the schedule.
    decayed: patterns of the parameters that decay.
    clip: global norm that gradients are cut to; as they are by default (SigLIP and LiT: 1.0).
    frozen: patterns of parameters that stay as they are, with no optimizer state (LiT:
      "model/image/.*").
    momentum_dtype: what the momentum is stored in.

  Raises:
    UserError: `clip` is not above 0; or, from `init`, a pattern matches no parameter.

  Source: Zhai et al. 2022 (Scaling ViT), sec. 3.4, as big_vision has it.
  """
  return _optimizer(
      _scale_by_factored_rms(decay_rate, b2_cap, eps, min_factored),
      optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype),
      optax.scale(learning_rate), _decay(weight_decay, decayed),
      learning_rate=learning_rate, schedule=schedule, clip=clip, frozen=frozen,
      decayed=decayed if weight_decay else ())


def kept_within(optimizer: Optimizer | optax.GradientTransformation, bounds: Any) -> Optimizer:
  """The optimizer, with updates that stop at the bounds of each parameter.

  It is the parameter that stops and not its value inside the loss, so the gradient lives on at the
  bound and can lead back.

  Args:
    bounds: (low, high) for every parameter, infinite where there is none; a tree like params.

  Raises:
    UserError: a lower bound is above the upper one.
  """
  is_pair = lambda x: isinstance(x, tuple)
  for path, (low, high) in jax.tree_util.tree_leaves_with_path(bounds, is_leaf=is_pair):
    if not low <= high:
      raise UserError(f"{_name(path)} cannot lie between at_least={low} and at_most={high}. Swap "
                      "them, or leave one out.")

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


def _optimizer(*steps, learning_rate, schedule, clip, frozen, decayed):
  """The steps between clipping and the schedule, applied to what is not frozen."""
  if clip is not None and not clip > 0:
    raise UserError(f"clip {clip} is not above 0. Set it to a norm, as in clip=1.0, or to None for "
                    "gradients as they are.")
  for pattern in (*decayed, *frozen):
    _compiled(pattern)
  chain = optax.chain(*([optax.clip_by_global_norm(clip)] if clip is not None else []), *steps,
                      optax.scale_by_schedule(schedule), optax.scale(-1))
  if frozen:
    chain = optax.chain(
        optax.masked(chain, lambda tree: jax.tree.map(lambda x: not x, _matching(frozen, tree))),
        optax.masked(optax.set_to_zero(), lambda tree: _matching(frozen, tree)))

  def init(params):
    _check(params, decayed=decayed, frozen=frozen)
    return chain.init(params)

  return Optimizer(init, chain.update, lambda step: learning_rate * schedule(step))


def _check(params, *, decayed, frozen):
  """Raises if a pattern was probably not meant as it is written."""
  names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  matches = lambda patterns: {n for n in names for p in patterns if re.fullmatch(p, n)}
  for pattern in frozen:
    if not matches([pattern]):
      raise UserError(f"frozen pattern {pattern!r} matches no parameter. It must match a whole "
                      f"name, as there are: {_some(names)}.")
  if frozen and len(matches(frozen)) == len(names):
    raise UserError(f"frozen patterns {tuple(frozen)} match every parameter: nothing is left to "
                    "train. Leave out what should be trained.")
  if decayed and not matches(decayed):
    raise UserError(f"None of the decayed patterns {tuple(decayed)} matches a parameter. One must "
                    f"match a whole name, as there are: {_some(names)}. For no decay set "
                    "weight_decay=0.")


def _some(names):
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _compiled(pattern):
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UserError(f"Pattern {pattern!r} is not a regular expression: {e}. Any text is '.*', as "
                    "in 'model/image/.*'.") from e


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _matching(patterns, tree):
  """bools, True where a pattern matches the whole name; same tree."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: any(re.fullmatch(p, _name(path)) for p in patterns), tree)


def _decay(weight_decay, decayed):
  return optax.add_decayed_weights(weight_decay, lambda tree: _matching(decayed, tree))


class _FactoredState(NamedTuple):
  """Updates made, int32 []; for each parameter {"row": ..., "column": ...} or {"whole": ...}."""
  count: jax.Array  # type: ignore[assignment]  # A tuple's `count` is not needed.
  moments: Any


def _scale_by_factored_rms(decay_rate, b2_cap, eps, min_factored):
  """Divides by the root of a mean of squares; see `scaling_vit_adafactor`.

  Not optax's, which would take the depth of a stack of blocks for one of the two axes.
  """

  def init(params):
    def one(path, p):
      axes = _factored(path, p.shape, min_factored)
      if axes is None:
        return {"whole": jnp.zeros_like(p)}
      a, b = axes
      without = lambda axis: jnp.zeros(p.shape[:axis] + p.shape[axis + 1:], p.dtype)
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
  """The two largest axes, the longer one last, or None if the other is short; never the depth."""
  keys = _name(path).split("/")
  # A list of blocks has a number after the name, and no axis of depth.
  stacked = any(key == STACKED and not after.isdigit() for key, after in itertools.pairwise(keys))
  axes = sorted(range(1 if stacked else 0, len(shape)), key=lambda a: shape[a])[-2:]
  return axes if len(axes) == 2 and shape[axes[0]] >= min_factored else None
