"""The device mesh, the shardings of the train state, and global arrays from host-local ones."""

import math
import re
from typing import Any

import jax
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from clip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")   # FSDP is data parallelism with a sharded state: it shards batches too.
STACKED = "blocks"         # Parameters below this key have a leading [depth] axis, scanned over.

# Tensor parallelism: the axis of a parameter, counted from the end, that is sharded over `tensor`.
# Attention heads and the hidden units of an MLP stay independent until the output projection, so a
# block communicates its activations twice. Parameters that match no pattern are replicated over
# `tensor`. Source: Shoeybi et al. 2019 (Megatron-LM), sec. 3.
TENSOR_RULES = (
    (r"(attention/qkv|head/query|head/key_value)/(kernel|bias)", -2),     # [D, 3, heads, D/h]
    (r"(attention|head)/out/kernel", -3),                                 # [heads, D/h, D]
    (r"mlp/up/(kernel|bias)", -1),                                        # [D, hidden]
    (r"mlp/down/kernel", -2),                                             # [hidden, D]
    (r"text/embedding", -1),                                              # [vocabulary, D]
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, slices: int = -1,
              devices: list | None = None) -> Mesh:
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
        "number of slices, because fsdp and tensor stay within a slice.")
  if known > 1:
    arranged = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True)
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
        f"divisors of {devices}.")
  return sizes[0], sizes[1], sizes[2]


def batch_shards(mesh: Mesh) -> int:
  """Number of shards that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def on_rows(x: jax.Array) -> jax.Array:
  """Constrains the first axis of `x` to the batch axes of the mesh; no-op without a mesh.

  Otherwise the compiler sometimes shards activations like the FSDP parameters, and reshards them
  at every layer. The other axes are left to the compiler.
  """
  axes = tuple(a for a in BATCH if a in jax.sharding.get_abstract_mesh().axis_names)
  if not axes:
    return x
  return lax.with_sharding_constraint(x, P(axes, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def everywhere(x: jax.Array) -> jax.Array:
  """Constrains `x` to be replicated on every device of the mesh; no-op without a mesh.

  For small parameters that are stored sharded: the compiler would otherwise reshard activations.
  """
  return _constrained(x, P())


@jax.custom_vjp
def whole(parameter: jax.Array) -> jax.Array:
  """All-gathers a sharded parameter before its use; its gradient is reduce-scattered.

  Otherwise the compiler looks up rows of a sharded table by communicating the rows that were found,
  and that grows with the batch. No-op without a mesh.
  """
  return _constrained(parameter, P())


def _scattered(_, gradient):
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.axis_names:
    return (gradient,)
  axis = _fsdp_axis(gradient.shape, mesh.shape["fsdp"])
  # An all-reduce followed by a slice, which the compiler fuses into a reduce-scatter.
  split = P() if axis is None else P(*[None] * axis, "fsdp")
  return (_constrained(_constrained(gradient, P()), split),)


whole.defvjp(lambda parameter: (whole(parameter), None), _scattered)


def _constrained(x, spec):
  if not jax.sharding.get_abstract_mesh().axis_names:
    return x
  return lax.with_sharding_constraint(x, spec)


def state_shardings(state: Any, mesh: Mesh, *, smallest: int = 2**14) -> Any:
  """Returns the sharding of each array of a train state.

  Tensor parallelism comes first, by name: the axis in `TENSOR_RULES`, where the tensor axis of the
  mesh divides it. FSDP is next, by shape: arrays of at least `smallest` elements are sharded along
  the largest remaining axis that the fsdp axis of the mesh divides. The depth axis of stacked
  blocks is never sharded, because the scan over blocks reads one slice at a time. Everything else
  is replicated. Optimizer states contain the names and shapes of their parameters, so they are
  sharded like them.

  Args:
    state: pytree of arrays or of their shapes.
    mesh: with the axes of `make_mesh`.
    smallest: FSDP replicates arrays with fewer elements than this.

  Returns:
    A tree of NamedShardings with the same structure.

  Raises:
    UserError: the tensor axis of the mesh divides no axis that the rules name.
  """
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

  def one(path, x):
    spec: list[str | None] = [None] * x.ndim
    stacked = any(getattr(k, "key", getattr(k, "name", None)) == STACKED for k in path)
    axis = _tensor_axis(name(path), x.ndim)
    if tensor > 1 and axis is not None and x.shape[axis] % tensor == 0:
      spec[axis] = "tensor"
    taken = (*([0] if stacked else []), *(a for a in range(x.ndim) if spec[a]))
    split = _fsdp_axis(x.shape, fsdp, taken=taken) if x.size >= smallest else None
    if split is not None:
      spec[split] = "fsdp"
    return NamedSharding(mesh, P(*spec) if any(spec) else P())

  shardings = jax.tree_util.tree_map_with_path(one, state)
  if tensor > 1 and not any("tensor" in s.spec for s in jax.tree.leaves(shardings)):
    named = sorted({x.shape[axis] for path, x in jax.tree_util.tree_leaves_with_path(state)
                    if (axis := _tensor_axis(name(path), x.ndim)) is not None})
    raise UserError(
        f"mesh tensor={tensor} divides no axis that tensor parallelism shards; the sizes are "
        f"{', '.join(map(str, named)) or 'none'}. Set --config.mesh.tensor to 1 or a divisor.")
  return shardings


def _fsdp_axis(shape, fsdp, *, taken=()):
  """Returns the largest axis, not in `taken`, that `fsdp` divides, or None."""
  axes = [a for a, n in enumerate(shape) if a not in taken and n % fsdp == 0]
  return max(axes, key=lambda a: shape[a]) if fsdp > 1 and axes else None


def _tensor_axis(name, ndim):
  """Returns the axis to shard for tensor parallelism, counted from the end, or None."""
  for pattern, axis in TENSOR_RULES:
    if re.search(f"(^|/|_){pattern}$", name) and ndim >= -axis:
      return axis
  return None


def name(path: Any) -> str:
  """Formats a path in a tree, as in `params/model/image/embedding/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def explained(state: Any) -> list[tuple[str, str, str, int]]:
  """Returns (name, dtype[shape], sharding, bytes per device) of each array of a sharded state."""
  rows = []
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    split = ", ".join(f"{n} / {axis} {x.sharding.mesh.shape[axis]}"
                      for n, axis in zip(x.shape, x.sharding.spec) if axis)
    rows.append((name(path), f"{x.dtype}[{', '.join(map(str, x.shape))}]", split or "replicated",
                 math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize))
  return rows


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
  """The sharding that splits the first axis over the batch axes."""
  return NamedSharding(mesh, P(BATCH))


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns this host's rows of a batch into global arrays [B, ...], sharded over the batch axes."""
  return {name: jax.make_array_from_process_local_data(rows(mesh), x) for name, x in batch.items()}


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
        f"{near}. Set --config.data.batch_size.")
