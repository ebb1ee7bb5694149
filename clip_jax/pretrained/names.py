"""Tables of names: which array of another library is which of ours, for both directions.

A row says how to look at our array so that it is theirs: transposed, axes merged, a part of it.
That is a NumPy view, which copies nothing. To export, views are read; to import, they are
written to.
"""

from collections.abc import Callable, Iterable
import fnmatch
import math
from typing import NamedTuple

import numpy as np

from clip_jax.checkpoint import check_same
from clip_jax.errors import UserError

View = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
  """As it is."""
  return x


def vector(x: np.ndarray) -> np.ndarray:
  """All elements in one axis."""
  return x.reshape(-1)


def matrix(x: np.ndarray, contracted: int = 1) -> np.ndarray:
  """A kernel [in, ..., out, ...] as PyTorch's weight [out, in]; `contracted` axes are inputs."""
  axes = (*range(contracted, x.ndim), *range(contracted))
  return x.transpose(axes).reshape(math.prod(x.shape[contracted:]), -1)


def matrix_of_heads(x: np.ndarray) -> np.ndarray:
  """A kernel [heads, D/h, out] as a weight [out, D]."""
  return matrix(x, 2)


def convolution(x: np.ndarray) -> np.ndarray:
  """A kernel [h, w, in, out] as a weight [out, in, h, w]."""
  return x.transpose(3, 2, 0, 1)


def square_patch(x: np.ndarray) -> np.ndarray:
  """The kernel of patches [p * p * 3, D] as a convolution's, [p, p, 3, D]."""
  p = math.isqrt(x.shape[0] // 3)
  return x.reshape(p, p, 3, -1)


def patch(x: np.ndarray) -> np.ndarray:
  """The kernel of patches [p * p * 3, D] as a weight [D, 3, p, p]."""
  return convolution(square_patch(x))


def of(i: int, axis: int, view: View = same) -> View:
  """One of several products that are one array with us: queries 0, keys 1, values 2."""
  return lambda x: view(x[(slice(None),) * axis + (i,)])


class Name(NamedTuple):
  """One row of a table.

  Attributes:
    theirs: the name there; `{}` is the number of a block, whose arrays are stacked here.
    ours: the path here. Of several rows with one name there, the arrays follow one another there.
    view: our array, of one block -> theirs, without copying.
  """
  theirs: str
  ours: str
  view: View = same


def layer_norm(theirs: str, ours: str) -> list[Name]:
  """The two arrays of PyTorch's LayerNorm."""
  return [Name(f"{theirs}.weight", f"{ours}/scale"), Name(f"{theirs}.bias", f"{ours}/bias")]


def linear(theirs: str, ours: str, kernel: View = matrix, bias: View = vector) -> list[Name]:
  """The two arrays of PyTorch's Linear."""
  return [Name(f"{theirs}.weight", f"{ours}/kernel", kernel),
          Name(f"{theirs}.bias", f"{ours}/bias", bias)]


def prefixed(theirs: str, ours: str, rows: Iterable[Name]) -> list[Name]:
  """Rows for what lies deeper, on both sides."""
  return [Name(theirs + row.theirs, ours + row.ours, row.view) for row in rows]


def theirs(table: list[Name], tree: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
  """Our arrays as they are looked at there; rows of what this model does not have are left out.

  Raises:
    UserError: an array has no name there.
  """
  out, named = {}, set()
  for name, ours, view in table:
    if ours not in tree:
      continue
    named.add(ours)
    if "{}" in name:
      for i, block in enumerate(tree[ours]):
        out.setdefault(name.format(i), []).append(view(block))
    else:
      out.setdefault(name, []).append(view(tree[ours]))
  nameless = [path for path in tree if path not in named]
  if nameless:
    raise UserError(f"{len(nameless)} arrays of the model have no name in this format: "
                    f"{', '.join(nameless[:5])}{', ...' if len(nameless) > 5 else ''}.")
  return out


def read(table: list[Name], tree: dict[str, np.ndarray], arrays: dict[str, np.ndarray], where: str,
         *, ignored: tuple[str, ...] = ()) -> None:
  """Fills our arrays from theirs.

  Args:
    tree: our arrays by path, written to.
    arrays: theirs by name, of any type of number.
    where: they come from, for messages.
    ignored: patterns of names that may be there and say nothing.

  Raises:
    UserError: arrays are missing, too many or of another shape; lists the first, counts the rest.
  """
  views = theirs(table, tree)
  # A scalar is sometimes an array of one number.
  shape = lambda x: () if x.size == 1 else x.shape
  wanted = {name: shape(parts[0]) if len(parts) == 1 else
            (sum(len(part) for part in parts), *parts[0].shape[1:])
            for name, parts in views.items()}
  there = {name: shape(x) for name, x in arrays.items()
           if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
  check_same(there, wanted, where, hint="Its config does not describe its arrays: is it of another "
             "checkpoint, or was one of the two files not downloaded whole?")
  for name, parts in views.items():
    x, at = arrays[name], 0
    for part in parts:
      part[...] = x.reshape(part.shape) if len(parts) == 1 else x[at:at + len(part)]
      at += len(part) if part.ndim else 0


def written(table: list[Name], tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Theirs, float32, of our arrays."""
  whole = lambda parts: np.concatenate(parts) if len(parts) > 1 else parts[0]
  return {name: np.array(whole(parts), np.float32, order="C")
          for name, parts in theirs(table, tree).items()}
