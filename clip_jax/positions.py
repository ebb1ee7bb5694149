"""Another model's parameters for this one: positions resampled, everything else the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError


def resampled(positions: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int], *,
              method: str = "bilinear") -> np.ndarray:
  """Position embeddings of one grid of patches, for another grid.

  Both grids cover the whole image; to a coarser one, positions are averaged (antialiased).

  Args:
    positions: [N, D], row by row.
    old_grid, new_grid: (rows, columns).
    method: "bilinear", as big_vision and so CLIPA; or "bicubic", as open_clip.

  Returns:
    float32 [N', D].

  Raises:
    UserError: no such method, or the old grid does not have N places.
  """
  if method not in ("bilinear", "bicubic"):
    raise UserError(f'method {method!r} is not "bilinear" or "bicubic".')
  if math.prod(old_grid) != len(positions):
    raise UserError(f"{len(positions)} position embeddings are not a grid of {old_grid[0]} x "
                    f"{old_grid[1]}.")
  grid = jnp.asarray(positions, jnp.float32).reshape(*old_grid, -1)
  grid = jax.image.resize(grid, (*new_grid, grid.shape[-1]), method, antialias=True)
  return np.asarray(grid).reshape(math.prod(new_grid), -1)


def fitted(params: dict, like: dict, old_grid: tuple[int, int] | None,
           new_grid: tuple[int, int] | None, *, what: str = "train.start_from") -> dict:
  """The parameters of a trained model, for a model of another image size or text length.

  Positions of patches are resampled; that of a class token, before them, stays. Of the texts'
  positions the first ones are kept, and where this model has more, those keep their initial values.

  Args:
    params: arrays of the trained model, {"image": ..., "text": ..., ...}.
    like: arrays of this model with their initial values; the result has their shapes.
    old_grid, new_grid: (rows, columns) of the positions of the two image towers; None for a tower
      without.
    what: has the trained model, for the error.

  Raises:
    UserError: anything but positions differs; says what.
  """
  theirs, ours = _flat(params), _flat(like)
  made = dict(theirs)
  for name in theirs.keys() & ours.keys():
    old, new = theirs[name], ours[name]
    if not name.endswith("/positions") or old.ndim != 2 or old.shape[1] != new.shape[1]:
      continue
    if name.startswith("text/"):
      made[name] = jnp.concatenate([old[:len(new)], new[len(old):]])
    elif old_grid and new_grid and old_grid != new_grid:
      first = len(old) - math.prod(old_grid)
      made[name] = np.concatenate([old[:first], resampled(
          np.asarray(old[first:]), old_grid, new_grid)])
  _check_same({name: x.shape for name, x in made.items()},
              {name: x.shape for name, x in ours.items()}, what)
  leaves, tree = jax.tree_util.tree_flatten_with_path(like)
  return jax.tree_util.tree_unflatten(tree, [made[_name(path)] for path, _ in leaves])


def overlaid(tree: dict, other: dict) -> dict:
  """`tree`, with the leaves of `other` where it has the same names."""
  theirs = _flat(other)
  return jax.tree_util.tree_map_with_path(lambda path, x: theirs.get(_name(path), x), tree)


def _flat(tree):
  return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_same(theirs, ours, what, *, most=5):
  lines = [f"{n}: {theirs[n]} there, {ours[n]} here"
           for n in ours if n in theirs and theirs[n] != ours[n]]
  lines += [f"{n}: not there, {ours[n]} here" for n in ours if n not in theirs]
  lines += [f"{n}: {theirs[n]} there, not here" for n in theirs if n not in ours]
  if lines:
    more = f"\n  ... and {len(lines) - most} more" if len(lines) > most else ""
    raise UserError(
        f"{what} has another model; {len(lines)} arrays differ:\n  "
        + "\n  ".join(lines[:most]) + more + "\nImage size and text length may differ. Set the "
        "rest of config.model as in the config.json of that run.")
