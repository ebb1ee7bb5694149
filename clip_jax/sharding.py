"""The mesh, where arrays lie on it, and host-local arrays made global."""

import math
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from clip_jax.errors import UserError

AXES = ("data", "fsdp")
BATCH = ("data", "fsdp")   # The batch is split over both: FSDP is data parallelism with split state.
STACKED = "blocks"         # Below this name, a leading [depth] axis that scan walks along.


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: list | None = None) -> Mesh:
  """A mesh of all devices with the axes data and fsdp.

  Args:
    data, fsdp: devices along each axis; one of them may be -1, which takes what is left.

  Raises:
    UserError: the sizes do not make up the devices there are.
  """
  devices = jax.devices() if devices is None else devices
  sizes, n = [data, fsdp], len(devices)
  if sizes.count(-1) == 1:
    sizes[sizes.index(-1)] = max(1, n // -math.prod(sizes))
  if min(sizes) < 1 or math.prod(sizes) != n:
    raise UserError(
        f"mesh data={data} fsdp={fsdp} does not make up the {n} devices there are. Set one of "
        f"--config.mesh.data and --config.mesh.fsdp to -1 and the other to a divisor of {n}.")
  return jax.make_mesh(sizes, AXES, devices=devices,
                       axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def on_rows(x: jax.Array) -> jax.Array:
  """Pins the first axis of `x` to the batch axes of the mesh; without a mesh, `x`.

  Left alone, the compiler sometimes keeps activations split as the FSDP parameters are, and moves
  them at every layer. The other axes are left to the compiler.
  """
  axes = tuple(a for a in BATCH if a in jax.sharding.get_abstract_mesh().axis_names)
  if not axes:
    return x
  return lax.with_sharding_constraint(x, P(axes, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def everywhere(x: jax.Array) -> jax.Array:
  """Pins a copy of `x` to every device of the mesh; without a mesh, `x`.

  For small parameters whose stored split would otherwise make the compiler move activations.
  """
  return lax.with_sharding_constraint(x, P()) if jax.sharding.get_abstract_mesh().axis_names else x


def state_shardings(state: Any, mesh: Mesh, *, smallest: int = 2**14) -> Any:
  """Where each array of a train state lies: FSDP for the large ones, a copy everywhere for the rest.

  One rule for parameters and optimizer state, by shape: the largest axis that the fsdp axis of the
  mesh divides is split, in arrays of at least `smallest` elements. The depth axis of stacked blocks
  is never split, for the loop over blocks reads one slice after the other.

  Args:
    state: pytree of arrays or of their shapes.

  Returns:
    NamedShardings, same tree.
  """
  fsdp = mesh.shape["fsdp"]

  def one(path, x):
    stacked = any(getattr(k, "key", getattr(k, "name", None)) == STACKED for k in path)
    axes = [a for a in range(1 if stacked else 0, x.ndim) if x.shape[a] % fsdp == 0]
    if fsdp == 1 or x.size < smallest or not axes:
      return NamedSharding(mesh, P())
    split = max(axes, key=lambda a: x.shape[a])
    return NamedSharding(mesh, P(*["fsdp" if a == split else None for a in range(x.ndim)]))

  return jax.tree_util.tree_map_with_path(one, state)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis split over the batch axes."""
  return NamedSharding(mesh, P(BATCH))


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows of a batch as global arrays [B, ...], split over the batch axes."""
  return {name: jax.make_array_from_process_local_data(rows(mesh), x) for name, x in batch.items()}


def check_divisible(batch_size: int, *, devices: int, microbatches: int = 1):
  """Raises unless every device gets the same number of rows of every piece of the batch."""
  unit = devices * microbatches
  if batch_size % unit:
    below = batch_size // unit * unit
    near = ", ".join(str(n) for n in (below, below + unit) if n)
    pieces = f" x {microbatches} microbatches" if microbatches > 1 else ""
    raise UserError(
        f"batch_size {batch_size} is not divisible by {devices} devices{pieces}; nearest that are: "
        f"{near}. Set --config.data.batch_size.")


