"""Name tables: how another library's arrays map to ours, used for both import and export.

Each row has a NumPy view that gives our array the shape of theirs: transposed, with axes merged, or
sliced. A view copies nothing, so export reads from the views and import writes to them.
"""

from collections.abc import Callable, Iterable
import fnmatch
import math
import mmap
from typing import NamedTuple

import numpy as np

from clip_jax.errors import UserError
from clip_jax.model.transfer import check_same_arrays

View = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
  """Returns the array unchanged."""
  return x


def vector(x: np.ndarray) -> np.ndarray:
  """Flattens an array to one axis."""
  return x.reshape(-1)


def matrix(x: np.ndarray, contracted: int = 1) -> np.ndarray:
  """Views a kernel [in, ..., out, ...] as a PyTorch weight [out, in].

  The first `contracted` axes of the kernel are its inputs.
  """
  axes = (*range(contracted, x.ndim), *range(contracted))
  return x.transpose(axes).reshape(math.prod(x.shape[contracted:]), -1)


def matrix_of_heads(x: np.ndarray) -> np.ndarray:
  """Views a kernel [heads, D/h, out] as a PyTorch weight [out, D]."""
  return matrix(x, 2)


def convolution(x: np.ndarray) -> np.ndarray:
  """Views a convolution kernel [h, w, in, out] as a PyTorch weight [out, in, h, w]."""
  return x.transpose(3, 2, 0, 1)


def square_patch(x: np.ndarray) -> np.ndarray:
  """Views a patch embedding kernel [p * p * 3, D] as a convolution kernel [p, p, 3, D]."""
  p = math.isqrt(x.shape[0] // 3)
  return x.reshape(p, p, 3, -1)


def patch(x: np.ndarray) -> np.ndarray:
  """Views a patch embedding kernel [p * p * 3, D] as a PyTorch convolution weight [D, 3, p, p]."""
  return convolution(square_patch(x))


def pointwise(x: np.ndarray) -> np.ndarray:
  """Views a kernel [in, out] as a PyTorch weight of a 1 x 1 convolution, [out, in, 1, 1]."""
  return x.T[:, :, None, None]


def convolution_patch(x: np.ndarray) -> np.ndarray:
  """Views a kernel of 2 x 2 patches, [4 * in, out], as a PyTorch weight [out, in, 2, 2]."""
  return convolution(x.reshape(2, 2, -1, x.shape[1]))


def of(i: int, axis: int, view: View = same) -> View:
  """Returns a view of slice `i` along an axis of a fused kernel or bias.

  In `qkv`, for example, slice 0 holds the queries, 1 the keys and 2 the values.
  """
  return lambda x: view(x[(slice(None),) * axis + (i,)])


class Name(NamedTuple):
  """One row of a name table.

  Attributes:
    theirs: the other library's name. `{}` stands for the block index; our blocks are stacked.
    ours: our path. If several rows share one of their names, their array is the concatenation of
      our arrays, in the order of the rows.
    view: our array (of one block, if stacked) -> theirs, without copying.
  """

  theirs: str
  ours: str
  view: View = same


def layer_norm(theirs: str, ours: str) -> list[Name]:
  """Returns the rows of a PyTorch LayerNorm: scale and bias."""
  return [Name(f"{theirs}.weight", f"{ours}/scale"), Name(f"{theirs}.bias", f"{ours}/bias")]


def linear(theirs: str, ours: str, kernel: View = matrix, bias: View = vector) -> list[Name]:
  """Returns the rows of a PyTorch Linear: kernel and bias."""
  return [
    Name(f"{theirs}.weight", f"{ours}/kernel", kernel),
    Name(f"{theirs}.bias", f"{ours}/bias", bias),
  ]


def prefixed(theirs: str, ours: str, rows: Iterable[Name]) -> list[Name]:
  """Prepends prefixes to the names of all rows, on both sides."""
  return [Name(theirs + row.theirs, ours + row.ours, row.view) for row in rows]


# Prefixes that PyTorch's wrappers put before the names of all arrays: DataParallel, compile, FSDP.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def without_wrappers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes prefixes from names if all names have them."""
  common = lambda prefix: bool(arrays) and all(name.startswith(prefix) for name in arrays)
  while prefix := next(filter(common, WRAPPERS), ""):
    arrays = {name.removeprefix(prefix): x for name, x in arrays.items()}
  return arrays


def theirs(table: list[Name], tree: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
  """Returns views of our arrays by the other library's names.

  Rows for arrays that this model lacks are skipped. A list has several views if their array is a
  concatenation of ours.

  Raises:
    UserError: the table has no row for one of our arrays.
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
    raise UserError(
      f"This format has no name for {len(nameless)} arrays of the model: "
      f"{', '.join(nameless[:5])}{', ...' if len(nameless) > 5 else ''}."
    )
  return out


def read(
  table: list[Name],
  tree: dict[str, np.ndarray],
  arrays: dict[str, np.ndarray],
  where: str,
  *,
  ignored: tuple[str, ...] = (),
) -> None:
  """Copies another library's arrays into ours.

  Args:
    table: the name table.
    tree: our arrays by path; overwritten in place.
    arrays: their arrays by name, of any numeric dtype.
    where: the origin of `arrays`, for error messages.
    ignored: glob patterns of array names to skip.

  Raises:
    UserError: arrays are missing, unexpected or misshapen; the message lists the first few and
      counts the rest.
  """
  for name, parts in checked_views(table, tree, arrays, where, ignored=ignored).items():
    x, at = arrays[name], 0
    for part in parts:
      _copy(part, x.reshape(part.shape) if len(parts) == 1 else x[at : at + len(part)])
      at += len(part) if part.ndim else 0
    release(x)


def checked_views(
  table: list[Name],
  tree: dict[str, np.ndarray],
  arrays: dict[str, np.ndarray],
  where: str,
  *,
  ignored: tuple[str, ...] = (),
) -> dict[str, list[np.ndarray]]:
  """Returns the views of `theirs`, with shapes checked; arguments and errors as for `read`."""
  views = theirs(table, tree)
  # Some libraries store a scalar as an array of one element.
  shape = lambda x: () if x.size == 1 else x.shape
  wanted = {
    name: shape(parts[0])
    if len(parts) == 1
    else (sum(len(part) for part in parts), *parts[0].shape[1:])
    for name, parts in views.items()
  }
  there = {
    name: shape(x)
    for name, x in arrays.items()
    if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)
  }
  check_same_arrays(
    there,
    wanted,
    where,
    hint="The config does not match the weights: is it from another "
    "checkpoint, or was one of the two files downloaded only partly?",
  )
  return views


def _copy(target, source, *, rows=64):
  """Copies an array in blocks of rows: four times as fast as at once, if one is transposed."""
  if not target.ndim:
    target[...] = source
  for i in range(0, len(target) if target.ndim else 0, rows):
    target[i : i + rows] = source[i : i + rows]


def release(x: np.ndarray) -> None:
  """Returns the memory of an array that is a view of a mapped file; it is read again if needed."""
  whole = x
  while isinstance(whole.base, np.ndarray):
    whole = whole.base
  mapped = whole.base
  if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
    return
  offset = x.ctypes.data - whole.ctypes.data
  start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
  length = (offset + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
  if length > 0:
    mapped.madvise(mmap.MADV_DONTNEED, start, length)


def written(table: list[Name], tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the other library's arrays, in float32, made from ours."""
  whole = lambda parts: np.concatenate(parts) if len(parts) > 1 else parts[0]
  return {
    name: np.array(whole(parts), np.float32, order="C")
    for name, parts in theirs(table, tree).items()
  }
