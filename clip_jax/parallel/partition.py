"""Partition rules: how each array of the train state is sharded over the mesh."""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from clip_jax.errors import UserError
from clip_jax.parallel.mesh import BATCH
from clip_jax.parallel.tree_paths import leaves_by_name, path_name

STACKED = "blocks"  # Parameters below this key have a leading [depth] axis, scanned over.

# Tensor parallelism: the axis of a parameter, counted from the end, that is sharded over `tensor`.
# Attention heads and the hidden units of an MLP stay independent until the output projection, so a
# block communicates its activations twice. Parameters that match no pattern are replicated over
# `tensor`. Source: Shoeybi et al. 2019 (Megatron-LM), sec. 3.
TENSOR_RULES = (
  (r"(attention/qkv|head/query|head/key_value)/(kernel|bias)", -2),  # [D, 3, heads, D/h]
  (r"(attention|head)/out/kernel", -3),  # [heads, D/h, D]
  (r"mlp/(up|gate)/(kernel|bias)", -1),  # [D, hidden]
  (r"mlp/down/kernel", -2),  # [hidden, D]
  (r"text/embedding", -1),  # [vocab_size, D]
)


# Arrays with an entry for each record of the data, which only the rows of a batch read and write.
PER_EXAMPLE = re.compile(r"(^|/)per_example/")


def state_shardings(state: Any, mesh: Mesh, *, min_size: int = 2**14) -> Any:
  """Returns the sharding of each array of a train state.

  Tensor parallelism comes first, by name: the axis in `TENSOR_RULES`, where the tensor axis of the
  mesh divides it. FSDP is next, by shape: arrays of at least `min_size` elements are sharded along
  the largest remaining axis that the fsdp axis of the mesh divides. The depth axis of stacked
  blocks is never sharded, because the scan over blocks reads one slice at a time. Arrays with one
  entry per record (`PER_EXAMPLE`) are sharded over the data-parallel and the fsdp axes together.
  Everything else is replicated. Optimizer states contain the names and shapes of their parameters,
  so they are sharded like them.

  Args:
    state: pytree of arrays or of their shapes.
    mesh: with the axes of `make_mesh`.
    min_size: FSDP replicates arrays with fewer elements than this.

  Returns:
    A tree of NamedShardings with the same structure.

  Raises:
    UserError: the tensor axis of the mesh divides no axis that the rules name.
  """
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

  def one(path, x):
    spec: list[str | None] = [None] * x.ndim
    name = path_name(path)
    if PER_EXAMPLE.search(name) and x.shape[0] % (mesh.shape["data"] * fsdp) == 0:
      return NamedSharding(mesh, P(BATCH))
    stacked = STACKED in name.split("/")
    axis = _tensor_axis(name, x.ndim)
    if tensor > 1 and axis is not None and x.shape[axis] % tensor == 0:
      spec[axis] = "tensor"
    taken = (*([0] if stacked else []), *(a for a in range(x.ndim) if spec[a]))
    split = fsdp_axis(x.shape, fsdp, taken=taken) if x.size >= min_size else None
    if split is not None:
      spec[split] = "fsdp"
    return NamedSharding(mesh, P(*spec) if any(spec) else P())

  shardings = jax.tree_util.tree_map_with_path(one, state)
  if tensor > 1 and not any("tensor" in s.spec for s in jax.tree.leaves(shardings)):
    named = sorted(
      {
        x.shape[axis]
        for name, x in leaves_by_name(state).items()
        if (axis := _tensor_axis(name, x.ndim)) is not None
      }
    )
    raise UserError(
      f"mesh tensor={tensor} divides no axis that tensor parallelism shards; the sizes are "
      f"{', '.join(map(str, named)) or 'none'}. Set --config.mesh.tensor to 1 or a divisor."
    )
  return shardings


def fsdp_axis(shape: tuple[int, ...], fsdp: int, *, taken: tuple[int, ...] = ()) -> int | None:
  """Returns the largest axis, not in `taken`, that `fsdp` divides, or None."""
  axes = [a for a, n in enumerate(shape) if a not in taken and n % fsdp == 0]
  return max(axes, key=lambda a: shape[a]) if fsdp > 1 and axes else None


def _tensor_axis(name, ndim):
  """Returns the axis to shard for tensor parallelism, counted from the end, or None."""
  for pattern, axis in TENSOR_RULES:
    if re.search(f"(^|/|_){pattern}$", name) and ndim >= -axis:
      return axis
  return None


def describe_shardings(state: Any) -> list[tuple[str, str, str, int]]:
  """Returns (name, dtype[shape], sharding, bytes per device) of each array of a sharded state."""
  rows = []
  for name, x in leaves_by_name(state).items():
    split = ", ".join(
      f"{n} / {axis} {x.sharding.mesh.shape[axis]}"
      for n, axes in zip(x.shape, x.sharding.spec)
      for axis in ((axes,) if isinstance(axes, str) else axes or ())
    )
    rows.append(
      (
        name,
        f"{x.dtype}[{', '.join(map(str, x.shape))}]",
        split or "replicated",
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize,
      )
    )
  return rows
