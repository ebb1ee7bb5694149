"""The device mesh: its axes, its sizes, and how a batch is divided over it."""

from collections.abc import Sequence
import math
from typing import Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh
import numpy as np

from clip_jax.cli.values import PositiveInt, checked
from clip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # FSDP is data parallelism with a sharded state: it shards batches too.


Axis = Literal[-1] | PositiveInt


@checked
def make_mesh(
  data: Axis = -1,
  fsdp: Axis = 1,
  tensor: Axis = 1,
  *,
  slices: Axis = -1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of all devices with the axes data, fsdp and tensor.

  Devices that are adjacent along `tensor` communicate the most, so they are placed closest to each
  other. With several slices, connected only by the data-centre network, the data axis is divided
  among the slices, so that only gradients cross the network.

  Args:
    data, fsdp, tensor: number of devices along each axis; one of them may be -1, which is then
      inferred from the number of devices.
    slices: number of slices that the data axis is divided into; -1 for the number that the devices
      report. GPUs and CPUs report none, and are divided in the order of their list.
    devices: the devices to use; all of them by default.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or do not fit the slices.
  """
  devices = jax.devices() if devices is None else devices
  data, fsdp, tensor = sizes = mesh_sizes(data, fsdp, tensor, devices=len(devices))
  known = len({getattr(d, "slice_index", None) for d in devices})
  slices = known if slices == -1 else slices
  if slices < 1 or data % slices or known not in (1, slices):
    raise UserError(
      f"mesh data={data} cannot be divided into slices={slices}: the {len(devices)} devices are "
      f"in {known}. Set --config.mesh.slices=-1, and --config.mesh.data to a multiple of the "
      "number of slices, because fsdp and tensor stay within a slice."
    )
  if known > 1:
    arranged = mesh_utils.create_hybrid_device_mesh(
      (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  elif slices > 1:
    arranged = np.array(devices).reshape(sizes)
  else:
    arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(arranged, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def mesh_sizes(data: int, fsdp: int, tensor: int, *, devices: int) -> tuple[int, int, int]:
  """Returns the sizes of the axes for a number of devices, with -1 resolved.

  Raises:
    UserError: the sizes do not multiply to `devices`.
  """
  sizes = [data, fsdp, tensor]
  if sizes.count(-1) == 1:
    sizes[sizes.index(-1)] = max(1, devices // -math.prod(sizes))
  if min(sizes) < 1 or math.prod(sizes) != devices:
    given = " ".join(f"{name}={size}" for name, size in zip(AXES, (data, fsdp, tensor)))
    raise UserError(
      f"mesh {given} does not match the number of devices, {devices}. Set one of "
      "--config.mesh.data, --config.mesh.fsdp and --config.mesh.tensor to -1 and the others to "
      f"divisors of {devices}."
    )
  return sizes[0], sizes[1], sizes[2]


def batch_shards(mesh: Mesh) -> int:
  """Number of shards that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def check_divisible(batch_size: int, *, devices: int, microbatches: int = 1) -> None:
  """Checks that every device gets the same number of rows of each microbatch.

  Args:
    batch_size: number of rows of the global batch.
    devices: number of shards of a batch; see `batch_shards`.
    microbatches: number of microbatches that the batch is split into.

  Raises:
    UserError: the batch size is not divisible; names the nearest sizes that are.
  """
  unit = devices * microbatches
  if batch_size % unit:
    below = batch_size // unit * unit
    near = ", ".join(str(n) for n in (below, below + unit) if n)
    pieces = f" x {microbatches} microbatches" if microbatches > 1 else ""
    raise UserError(
      f"batch_size {batch_size} is not divisible by {devices} devices{pieces}; nearest that are: "
      f"{near}. Set --config.data.batch_size."
    )
