"""Transfers a trained model's parameters to another image size or context length.

Position embeddings are resampled; all other parameters are copied.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.parallel.tree_paths import leaves_by_name, path_name

# How libraries resample position embeddings. "bilinear" is CLIPA's and this package's, with
# antialiasing; "bicubic" open_clip's, also with antialiasing; "torch_bicubic" that of Hugging
# Face, which has none; "corner_bilinear" that of big_vision, whose corner patches stay in place.
METHODS = ("bilinear", "bicubic", "torch_bicubic", "corner_bilinear")


def resample_positions(
  positions: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  *,
  method: str = "bilinear",
) -> np.ndarray:
  """Resamples position embeddings from one grid of patches to another.

  Both grids cover the whole image.

  Args:
    positions: [N, D], row by row.
    old_grid, new_grid: (rows, columns).
    method: a name in `METHODS`.

  Returns:
    float32 [N', D].

  Raises:
    UserError: the method is unknown, or the old grid does not have N cells.
  """
  if method not in METHODS:
    raise UserError(f"method {method!r} is not one of {', '.join(METHODS)}.")
  if math.prod(old_grid) != len(positions):
    raise UserError(
      f"{len(positions)} position embeddings do not form a grid of {old_grid[0]} x {old_grid[1]}."
    )
  grid = jnp.asarray(positions, jnp.float32).reshape(*old_grid, -1)
  if method in ("bilinear", "bicubic"):
    grid = jax.image.resize(grid, (*new_grid, grid.shape[-1]), method, antialias=True)
  else:
    weights = _corner_linear if method == "corner_bilinear" else _sharp_cubic
    down, along = (weights(a, b) for a, b in zip(old_grid, new_grid))
    grid = np.einsum("yY,xX,YXd->yxd", down, along, np.asarray(grid))
  return np.asarray(grid, np.float32).reshape(math.prod(new_grid), -1)


def _corner_linear(old, new):
  """Weights [new, old] of linear interpolation in which the first and last cells stay in place."""
  at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _sharp_cubic(old, new, a=-0.75):
  """Weights [new, old] of cubic interpolation without antialiasing (Keys 1981, with this `a`)."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    x = np.abs(at - (np.floor(at) + tap))
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    cell = np.clip(np.floor(at) + tap, 0, old - 1).astype(int)  # Cells outside repeat the border.
    np.add.at(weights, (np.arange(new), cell), np.where(x <= 1, near, np.where(x < 2, far, 0)))
  return weights


def adapt_params(
  params: dict,
  like: dict,
  old_grid: tuple[int, int] | None,
  new_grid: tuple[int, int] | None,
  *,
  what: str = "train.init_from",
  method: str = "bilinear",
) -> dict:
  """Adapts a trained model's parameters to another image size or context length.

  Position embeddings of patches are resampled; that of a class token, in row 0, is copied. Those of
  texts are truncated, or extended with this model's initial values.

  Args:
    params: arrays of the trained model, {"image": ..., "text": ..., ...}.
    like: arrays of this model with their initial values; the result has their shapes.
    old_grid, new_grid: (rows, columns) of the position embeddings of the trained and this model's
      image towers; None for a tower without such a grid.
    what: names the trained model in the error message.
    method: how to resample, a name in `METHODS`.

  Raises:
    UserError: arrays other than position embeddings differ; the message lists them.
  """
  theirs, ours = leaves_by_name(params), leaves_by_name(like)
  adapted = dict(theirs)
  for name in theirs.keys() & ours.keys():
    old, new = theirs[name], ours[name]
    if not name.endswith("/positions") or old.ndim != 2 or old.shape[1] != new.shape[1]:
      continue
    if name.startswith("text/"):
      adapted[name] = jnp.concatenate([old[: len(new)], new[len(old) :]])
    elif old_grid and new_grid and old_grid != new_grid:
      first = len(old) - math.prod(old_grid)
      patches = resample_positions(np.asarray(old[first:]), old_grid, new_grid, method=method)
      adapted[name] = np.concatenate([old[:first], patches])
  _check_same(
    {name: x.shape for name, x in adapted.items()},
    {name: x.shape for name, x in ours.items()},
    what,
  )
  return jax.tree_util.tree_map_with_path(lambda path, _: adapted[path_name(path)], like)


def overlay(tree: dict, other: dict) -> dict:
  """Returns `tree` with its leaves replaced by those of `other` that have the same path."""
  theirs = leaves_by_name(other)
  return jax.tree_util.tree_map_with_path(lambda path, x: theirs.get(path_name(path), x), tree)


def _check_same(theirs, ours, what, *, most=5):
  lines = [
    f"{n}: saved {theirs[n]}, expected {ours[n]}"
    for n in ours
    if n in theirs and theirs[n] != ours[n]
  ]
  lines += [f"{n}: not saved, expected {ours[n]}" for n in ours if n not in theirs]
  lines += [f"{n}: saved {theirs[n]}, not expected" for n in theirs if n not in ours]
  if lines:
    more = f"\n  ... and {len(lines) - most} more" if len(lines) > most else ""
    raise UserError(
      f"{what} has a different model; {len(lines)} arrays differ:\n  "
      + "\n  ".join(lines[:most])
      + more
      + "\nOnly image size and context length may differ. Set "
      "the rest of config.model as in the config.json of that run."
    )


def check_same_arrays(
  saved: dict[str, tuple],
  wanted: dict[str, tuple],
  where: str,
  *,
  most: int = 5,
  hint: str = "Use the config it was trained with (config.json in its workdir), or another "
  "--workdir, where --config.train.init_from starts from its parameters if only image size and "
  "context length differ.",
) -> None:
  """Raises UserError unless two sets of arrays have the same names and shapes.

  Args:
    saved, wanted: shapes by name, in the checkpoint and as expected.
    where: path of the checkpoint, for the message.
    most: maximum number of differences to list.
    hint: end of the message: how to fix it.
  """
  misshapen = [
    f"{n}: saved {saved[n]}, expected {wanted[n]}"
    for n in wanted
    if n in saved and saved[n] != wanted[n]
  ]
  missing = [f"{n}: not saved, expected {wanted[n]}" for n in wanted if n not in saved]
  extra = [f"{n}: saved {saved[n]}, not expected" for n in saved if n not in wanted]
  differences = misshapen + missing + extra
  if differences:
    more = f"\n  ... and {len(differences) - most} more" if len(differences) > most else ""
    raise UserError(
      f"The checkpoint {where} is of a different model; {len(differences)} arrays differ:\n  "
      + "\n  ".join(differences[:most])
      + more
      + f"\n{hint}"
    )
