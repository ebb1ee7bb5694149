"""Learning rates of groups of parameters."""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.errors import UserError
from clip_jax.model.frozen import block_depths, examples, is_after, is_block, tower_of
from clip_jax.parallel.tree_paths import leaves_by_name, path_name


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
    UserError: a pattern matches nothing, or the names do not show the layers of a tower.
  """
  names = leaves_by_name(params)
  found: dict[str, float | tuple[float, ...]] = {}
  if layer_decay is not None:
    depths = block_depths(names)
    towers = {m[0] for name in names if (m := re.match(r"model/(image|text)(?=/)", name))}
    without = sorted(t for t in towers if not any(f"{d}/".startswith(f"{t}/") for d in depths))
    if without or not depths:
      raise UserError(
        f"layer_decay needs towers with one stack of blocks, as Vit, TextTransformer and MlpMixer, "
        f"and {', '.join(without) or 'the model'} has none. Use lr_multipliers instead."
      )
    for name in names:
      tower = tower_of(name, depths)
      if tower is None or is_after(rest := name.removeprefix(f"{tower}/")):
        continue
      n = depths[tower]
      found[name] = (
        tuple(layer_decay ** (n - i) for i in range(n))
        if is_block(rest)
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
