"""Splits parameters into those that are trained and those that are frozen.

Only the trained ones are differentiated, so frozen ones have no gradient, no optimizer state and no
backward pass.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.parallel.partition import STACKED
from clip_jax.parallel.tree_paths import leaves_by_name

# Name of a frozen array -> how many of its first blocks are frozen; None for the whole array.
Frozen = Mapping[str, int | None]


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
  depths = block_depths({name: names[name] for name in matched})
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
    tower = tower_of(name, depths)
    rest = name.removeprefix(f"{tower}/")
    if tower is None or not (is_block(rest) or is_after(rest)):
      frozen[name] = None
    elif is_block(rest) and depths[tower] > unlock_blocks:
      frozen[name] = depths[tower] - unlock_blocks
  return frozen


def split_frozen(params: dict, frozen: Frozen) -> tuple[dict, dict]:
  """Splits params into (trained, frozen); an array of stacked blocks may be cut into both.

  Args:
    params: plain nested dict of arrays.
    frozen: names are relative to `params`, such as `model/image/positions`.
  """

  def walk(tree, prefix):
    trained, held = {}, {}
    for key, x in tree.items():
      name = f"{prefix}{key}"
      if isinstance(x, dict):
        parts = walk(x, f"{name}/")
      elif name not in frozen:
        parts = x, None
      elif (blocks := frozen[name]) is None:
        parts = None, x
      else:
        parts = _cut(x, blocks)
      for half, part in zip((trained, held), parts):
        if part is not None and not (isinstance(part, dict) and not part and x):
          half[key] = part
    return trained, held

  return walk(params, "")


def _cut(x, blocks):
  if isinstance(x, jax.ShapeDtypeStruct):
    cut = lambda n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    return cut(x.shape[0] - blocks), cut(blocks)
  return x[blocks:], x[:blocks]


def join_frozen(trained: dict, held: dict) -> dict:
  """The inverse of `split_frozen`."""
  out = {}
  for key in {**held, **trained}:
    if key not in held or key not in trained:
      out[key] = trained[key] if key in trained else held[key]
    elif isinstance(trained[key], dict):
      out[key] = join_frozen(trained[key], held[key])
    else:
      out[key] = jnp.concatenate([held[key], trained[key]])
  return out


def replace_trained(params: dict, trained: dict) -> dict:
  """Returns `params` with new values of the trained part, without copying the frozen part."""
  out = dict(params)
  for key, x in trained.items():
    if isinstance(x, dict):
      out[key] = replace_trained(params[key], x)
    else:
      out[key] = x if x.shape == params[key].shape else params[key].at[-len(x) :].set(x)
  return out


def mark_frozen(model: nnx.Module, params: dict, frozen: Frozen) -> None:
  """Tells a model which of its parts are frozen, so that they are computed as in inference.

  BatchNorm in a frozen tower uses and keeps its running averages, and the first blocks of a stack
  have no backward pass if they are frozen.

  Args:
    model: a model, which may be abstract.
    params: its params, or their shapes.
    frozen: names are relative to the model.
  """
  names = [*_names(params)]
  if hasattr(model, "frozen_towers"):
    model.frozen_towers = tuple(
      tower
      for tower in ("image", "text")
      if all(frozen.get(n, 0) is None for n in names if n.startswith(f"{tower}/"))
    )
  for stack in {n.partition(f"/{STACKED}/")[0] for n in names if f"/{STACKED}/" in n}:
    counts = {frozen.get(n, 0) for n in names if n.startswith(f"{stack}/{STACKED}/")}
    blocks = counts.pop()
    module: Any = model
    for key in stack.split("/"):
      module = module[int(key)] if key.isdigit() else getattr(module, key)
    if not counts and blocks and hasattr(module, "frozen_blocks"):
      module.frozen_blocks = blocks


def _names(tree, prefix=""):
  for key, x in tree.items():
    yield from _names(x, f"{prefix}{key}/") if isinstance(x, dict) else (f"{prefix}{key}",)


def examples(names: list[str]) -> str:
  """Lists the first names for a message."""
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def block_depths(names: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of blocks of each tower that has one stack of them."""
  return {
    name.partition(_STACK)[0]: x.shape[0] for name, x in names.items() if _STACK in f"/{name}"
  }


def tower_of(name: str, depths: Mapping[str, int]) -> str | None:
  """Returns the tower that a parameter belongs to, or None."""
  return next((tower for tower in depths if name.startswith(f"{tower}/")), None)


def is_block(rest: str) -> bool:
  """Whether a parameter of a tower, named within the tower, belongs to its blocks."""
  return rest.startswith(_STACK[1:])


def is_after(rest: str) -> bool:
  """Whether a parameter of a tower, named within the tower, is used after its blocks."""
  return rest.split("/", maxsplit=1)[0] in _AFTER
