"""Placing arrays on the mesh: sharding constraints in a program, and host arrays as global ones."""

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from clip_jax.parallel.mesh import BATCH
from clip_jax.parallel.partition import fsdp_axis


def shard_batch(x: jax.Array) -> jax.Array:
  """Constrains the first axis of `x` to the batch axes of the mesh; no-op without a mesh.

  Otherwise the compiler sometimes shards activations like the FSDP parameters, and reshards them
  at every layer. The other axes are left to the compiler.
  """
  axes = tuple(a for a in BATCH if a in jax.sharding.get_abstract_mesh().axis_names)
  if not axes:
    return x
  return lax.with_sharding_constraint(x, P(axes, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def replicate(x: jax.Array) -> jax.Array:
  """Constrains `x` to be replicated on every device of the mesh; no-op without a mesh.

  For small parameters that are stored sharded: the compiler would otherwise reshard activations.
  """
  return _constrain(x, P())


@jax.custom_vjp
def all_gather_param(parameter: jax.Array) -> jax.Array:
  """All-gathers a sharded parameter before its use; its gradient is reduce-scattered.

  Otherwise the compiler looks up rows of a sharded table by communicating the rows that were found,
  and that grows with the batch. No-op without a mesh.
  """
  return _constrain(parameter, P())


def _scatter_gradient(_, gradient):
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.axis_names:
    return (gradient,)
  axis = fsdp_axis(gradient.shape, mesh.shape["fsdp"])
  # An all-reduce followed by a slice, which the compiler fuses into a reduce-scatter.
  split = P() if axis is None else P(*[None] * axis, "fsdp")
  return (_constrain(_constrain(gradient, P()), split),)


all_gather_param.defvjp(lambda parameter: (all_gather_param(parameter), None), _scatter_gradient)


def _constrain(x, spec):
  if not jax.sharding.get_abstract_mesh().axis_names:
    return x
  return lax.with_sharding_constraint(x, spec)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding that splits the first axis over the batch axes."""
  return NamedSharding(mesh, P(BATCH))


def rows_of_devices(devices: Any, batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """Returns the rows of a batch that are stored on some of a mesh's devices: int64 [b], ascending.

  The order of the devices in a mesh follows the interconnect, so the rows of one host need not be
  contiguous. Hosts that share rows (along an axis that does not shard the batch) read the same
  ones.
  """
  where = batch_sharding(mesh).devices_indices_map((batch_size,))
  held = [np.arange(batch_size)[where[device][0]] for device in devices]
  return np.unique(np.concatenate(held))


def to_global(
  tree: Any,
  sharding: NamedSharding,
  *,
  rows: np.ndarray | None = None,
  batch_size: int | None = None,
) -> Any:
  """Copies arrays from the host to the devices of a mesh, as global arrays.

  Each process supplies the parts that its own devices store.

  Args:
    tree: pytree of NumPy arrays.
    sharding: the sharding of every global array.
    rows: if this process has only some rows of a batch: their indices in the batch, ascending, from
      `rows_of_devices` of its devices. By default every process has all elements.
    batch_size: number of rows of the global arrays, if `rows` is set.
  """

  def held(index):
    if rows is None:
      return index
    begin, end, _ = index[0].indices(batch_size)
    begin, end = np.searchsorted(rows, (begin, end))
    return (slice(begin, end), *index[1:])

  def one(x):
    shape = x.shape if rows is None else (batch_size, *x.shape[1:])
    return jax.make_array_from_callback(shape, sharding, lambda index: x[held(index)])

  return jax.tree.map(one, tree)
