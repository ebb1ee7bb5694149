"""Which parameters an optimizer freezes, and the learning rates of the others."""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.errors import UserError
from clip_jax.model.frozen import Frozen
from clip_jax.parallel.partition import STACKED
from clip_jax.parallel.tree_paths import leaves_by_name, path_name

_STACK = f"/stack/{STACKED}/"
_AFTER = ("norm", "head")  # Parts of a tower that follow its blocks.


def frozen_params(params: Any, patterns: Sequence[str], unlock_blocks: int) -> Frozen:
  """Returns the parameters that are frozen.

  Args:
    params: all parameters, or their shapes.
    patterns: regular expressions for whole names.
    unlock_blocks: number of last blocks that stay trained in each tower that the patterns match,
      with what follows these blocks: the final norm and the pooling head.

  Raises:
    UserError: a pattern matches nothing, all parameters are frozen, or a tower does not have so
      many blocks.
  """
  names = leaves_by_name(params)
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise UserError(
        f"freeze_params pattern {pattern!r} matches no parameter. It must match a whole "
        f"name, such as: {examples([*names])}."
      )
  matched = [name for name in names if any(re.fullmatch(p, name) for p in patterns)]
  if patterns and len(matched) == len(names):
    raise UserError(
      f"The freeze_params patterns {tuple(patterns)} match every parameter, so nothing is "
      "left to train. Exclude the parameters that should be trained."
    )
  if not unlock_blocks:
    return dict.fromkeys(matched)
  depths = _depths({name: names[name] for name in matched})
  if not depths:
    raise UserError(
      f"unlock_blocks={unlock_blocks} needs a tower with a stack of blocks, such as Vit or "
      f"TextTransformer, that freeze_params matches; the patterns are {tuple(patterns)}."
    )
  for tower, depth in depths.items():
    if unlock_blocks > depth:
      raise UserError(f"unlock_blocks={unlock_blocks}, but {tower} has only {depth} blocks.")
  frozen: dict[str, int | None] = {}
  for name in matched:
    tower = _tower(name, depths)
    rest = name.removeprefix(f"{tower}/")
    if tower is None or not (_is_block(rest) or _is_after(rest)):
      frozen[name] = None
    elif _is_block(rest) and depths[tower] > unlock_blocks:
      frozen[name] = depths[tower] - unlock_blocks
  return frozen


def rate_multipliers(
  params: Any, lr_multipliers: Sequence[tuple[str, float]], layer_decay: float | None
) -> dict[str, float | tuple[float, ...]]:
  """Returns the factor of the learning rate of each parameter that has one other than 1.

  Args:
    params: all parameters, or their shapes.
    lr_multipliers: pairs of a pattern and a factor; the first that matches counts.
    layer_decay: factor per layer: block i of a tower of n has the factor layer_decay^(n - i), what
      comes before the blocks layer_decay^(n + 1), and what follows them 1.

  Returns:
    A number, or for stacked blocks one for each block, by name.

  Raises:
    UserError: a pattern matches nothing, or layers of a tower cannot be told from the names.
  """
  names = leaves_by_name(params)
  found: dict[str, float | tuple[float, ...]] = {}
  if layer_decay is not None:
    depths = _depths(names)
    towers = {m[0] for name in names if (m := re.match(r"model/(image|text)(?=/)", name))}
    without = sorted(t for t in towers if not any(f"{d}/".startswith(f"{t}/") for d in depths))
    if without or not depths:
      raise UserError(
        f"layer_decay needs towers with one stack of blocks, as Vit, TextTransformer and MlpMixer, "
        f"and {', '.join(without) or 'the model'} has none. Use lr_multipliers instead."
      )
    for name in names:
      tower = _tower(name, depths)
      if tower is None or _is_after(rest := name.removeprefix(f"{tower}/")):
        continue
      n = depths[tower]
      found[name] = (
        tuple(layer_decay ** (n - i) for i in range(n))
        if _is_block(rest)
        else layer_decay ** (n + 1)
      )
  left = set(names)
  for pattern, factor in lr_multipliers:
    matched = {name for name in names if re.fullmatch(pattern, name)}
    if not matched:
      raise UserError(
        f"lr_multipliers pattern {pattern!r} matches no parameter. It must match a whole name, "
        f"such as: {examples([*names])}."
      )
    for name in matched & left:
      before = found.get(name, 1.0)
      found[name] = (
        tuple(factor * x for x in before) if isinstance(before, tuple) else factor * before
      )
    left -= matched
  return found


def scale_by_name(factors: dict[str, float | tuple[float, ...]]) -> optax.GradientTransformation:
  """Multiplies updates by factors by name; for cut stacks of blocks, by those of the last ones."""

  def one(path, update):
    factor = factors.get(path_name(path), 1.0)
    if isinstance(factor, tuple):
      last = jnp.asarray(factor[-update.shape[0] :], update.dtype)
      return update * last.reshape(-1, *(1,) * (update.ndim - 1))
    return update * factor if factor != 1 else update

  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))


def examples(names: list[str]) -> str:
  """Lists the first names for a message."""
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _depths(names):
  """Number of blocks of each tower that has one stack of them."""
  return {
    name.partition(_STACK)[0]: x.shape[0] for name, x in names.items() if _STACK in f"/{name}"
  }


def _tower(name, depths):
  return next((tower for tower in depths if name.startswith(f"{tower}/")), None)


def _is_block(rest):
  return rest.startswith(_STACK[1:])


def _is_after(rest):
  return rest.split("/")[0] in _AFTER
