"""Splits parameters into those that are trained and those that are frozen.

Only the trained ones are differentiated, so frozen ones have no gradient, no optimizer state and no
backward pass.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.parallel.partition import STACKED

# Name of a frozen array -> how many of its first blocks are frozen; None for the whole array.
Frozen = Mapping[str, int | None]


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
