"""The mesh, where arrays lie on it, and host-local arrays made global."""

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
BATCH = ("data", "fsdp")   # The batch is split over both: FSDP is data parallelism of split state.
STACKED = "blocks"         # Below this name, a leading [depth] axis that scan walks along.

# Tensor parallelism: which axis of a parameter, counted from the end, is split over `tensor`. Heads
# and the hidden units of an MLP do not meet until the product that follows, so a block sends its
# activations twice. What matches no pattern is the same on all devices of `tensor`.
# Source: Shoeybi et al. 2019 (Megatron-LM), sec. 3.
TENSOR_RULES = (
    (r"(attention/qkv|head/query|head/key_value)/(kernel|bias)", -2),     # [D, 3, heads, D/h]
    (r"(attention|head)/out/kernel", -3),                                 # [heads, D/h, D]
    (r"mlp/up/(kernel|bias)", -1),                                        # [D, hidden]
    (r"mlp/down/kernel", -2),                                             # [hidden, D]
    (r"text/embedding", -1),                                              # [vocabulary, D]
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, slices: int = -1,
              devices: list | None = None) -> Mesh:
  """A mesh of all devices with the axes data, fsdp and tensor.

  Neighbours along `tensor` talk most and lie closest. Of several slices, which only the data-centre
  network connects, each takes a part of the data axis, so gradients alone go between them.

  Args:
    data, fsdp, tensor: devices along each axis; one of them may be -1, which takes what is left.
    slices: into how many slices the data axis is cut; -1 for as many as the devices lie in. Where
      devices know of none, as GPUs and CPUs, they are cut into so many in their order.

  Raises:
    UserError: the sizes do not make up the devices there are, or not in these slices.
  """
  devices = jax.devices() if devices is None else devices
  data, fsdp, tensor = sizes = mesh_sizes(data, fsdp, tensor, devices=len(devices))
  known = len({getattr(d, "slice_index", None) for d in devices})
  slices = known if slices == -1 else slices
  if slices < 1 or data % slices or known not in (1, slices):
    raise UserError(
        f"mesh data={data} cannot be cut into slices={slices} where the {len(devices)} devices lie "
        f"in {known}. Set --config.mesh.slices=-1, and --config.mesh.data to a multiple of the "
        "number of slices: fsdp and tensor stay within one.")
  if known > 1:
    arranged = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True)
  elif slices > 1:
    arranged = np.array(devices).reshape(sizes)
  else:
    arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(arranged, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def mesh_sizes(data: int, fsdp: int, tensor: int, *, devices: int) -> tuple[int, int, int]:
  """The sizes of the axes for so many devices, with -1 worked out.

  Raises:
    UserError: they do not make up the devices.
  """
  sizes = [data, fsdp, tensor]
  if sizes.count(-1) == 1:
    sizes[sizes.index(-1)] = max(1, devices // -math.prod(sizes))
  if min(sizes) < 1 or math.prod(sizes) != devices:
    given = " ".join(f"{name}={size}" for name, size in zip(AXES, (data, fsdp, tensor)))
    raise UserError(
        f"mesh {given} does not make up the {devices} devices there are. Set one of "
        "--config.mesh.data, --config.mesh.fsdp and --config.mesh.tensor to -1 and the others to "
        f"divisors of {devices}.")
  return sizes[0], sizes[1], sizes[2]


def batch_shards(mesh: Mesh) -> int:
  """Into how many pieces the rows of a batch are split over the devices."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


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
  return _constrained(x, P())


@jax.custom_vjp
def whole(parameter: jax.Array) -> jax.Array:
  """Gathers a split parameter for its use, and scatters its gradient. Without a mesh, itself.

  Left alone, the compiler looks rows up in a split table by sending what was found, which grows
  with the batch.
  """
  return _constrained(parameter, P())


def _scattered(_, gradient):
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.axis_names:
    return (gradient,)
  axis = _fsdp_axis(gradient.shape, mesh.shape["fsdp"])
  # First the sum over all rows, then a part of it to each: together, a scatter.
  split = P() if axis is None else P(*[None] * axis, "fsdp")
  return (_constrained(_constrained(gradient, P()), split),)


whole.defvjp(lambda parameter: (whole(parameter), None), _scattered)


def _constrained(x, spec):
  if not jax.sharding.get_abstract_mesh().axis_names:
    return x
  return lax.with_sharding_constraint(x, spec)


def state_shardings(state: Any, mesh: Mesh, *, smallest: int = 2**14) -> Any:
  """Where each array of a train state lies.

  First `TENSOR_RULES`, by name, where the tensor axis of the mesh divides the axis of the array.
  Then FSDP, by shape: of the other axes, the largest that the fsdp axis of the mesh divides is
  split, in arrays of at least `smallest` elements; never the depth axis of stacked blocks, for the
  loop over blocks reads one slice after the other. The rest is a copy everywhere. The state of an
  optimizer has the names and shapes of its parameters in it, so it lies as they do.

  Args:
    state: pytree of arrays or of their shapes.

  Returns:
    NamedShardings, same tree.

  Raises:
    UserError: the tensor axis of the mesh divides nothing that the rules name.
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
        f"mesh tensor={tensor} divides no number of heads and no hidden width of this model; they "
        f"are {', '.join(map(str, named)) or 'none'}. Set --config.mesh.tensor to 1 or a divisor.")
  return shardings


def _fsdp_axis(shape, fsdp, *, taken=()):
  """The largest axis that is not taken and that FSDP divides; None for none."""
  axes = [a for a, n in enumerate(shape) if a not in taken and n % fsdp == 0]
  return max(axes, key=lambda a: shape[a]) if fsdp > 1 and axes else None


def _tensor_axis(name, ndim):
  """The axis that tensor parallelism splits, counted from the end; None for none."""
  for pattern, axis in TENSOR_RULES:
    if re.search(f"(^|/|_){pattern}$", name) and ndim >= -axis:
      return axis
  return None


def name(path: Any) -> str:
  """A path in a tree as text, `params/model/image/embedding/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def explained(state: Any) -> list[tuple[str, str, str, int]]:
  """(name, shape, how it is split, bytes a device) of each array of a state with shardings."""
  rows = []
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    split = ", ".join(f"{n} / {axis} {x.sharding.mesh.shape[axis]}"
                      for n, axis in zip(x.shape, x.sharding.spec) if axis)
    rows.append((name(path), f"{x.dtype}[{', '.join(map(str, x.shape))}]", split or "a copy",
                 math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize))
  return rows


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis split over the batch axes."""
  return NamedSharding(mesh, P(BATCH))


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows of a batch as global arrays [B, ...], split over the batch axes."""
  return {name: jax.make_array_from_process_local_data(rows(mesh), x) for name, x in batch.items()}


def check_divisible(batch_size: int, *, devices: int, microbatches: int = 1) -> None:
  """Raises unless every device gets the same number of rows of every piece of the batch.

  Args:
    devices: that rows are split over, `batch_shards` of the mesh.
  """
  unit = devices * microbatches
  if batch_size % unit:
    below = batch_size // unit * unit
    near = ", ".join(str(n) for n in (below, below + unit) if n)
    pieces = f" x {microbatches} microbatches" if microbatches > 1 else ""
    raise UserError(
        f"batch_size {batch_size} is not divisible by {devices} devices{pieces}; nearest that are: "
        f"{near}. Set --config.data.batch_size.")
