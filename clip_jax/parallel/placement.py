"""Placing arrays on the mesh: sharding constraints in a program, and host rows as global arrays."""

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


def host_rows_to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns this host's rows of a batch into global arrays [B, ...], sharded over the batch axes."""
  return {
    name: jax.make_array_from_process_local_data(batch_sharding(mesh), x)
    for name, x in batch.items()
  }


def rows_of_devices(devices: Any, batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """Returns the rows of a batch that are stored on some of a mesh's devices: int64 [b], ascending.

  The order of the devices in a mesh follows the interconnect, so the rows of one host need not be
  contiguous. Hosts that share rows (along an axis that does not shard the batch) read the same
  ones.
  """
  where = batch_sharding(mesh).devices_indices_map((batch_size,))
  held = [np.arange(batch_size)[where[device][0]] for device in devices]
  return np.unique(np.concatenate(held))


def rows_to_global(
  batch: dict[str, np.ndarray], rows: np.ndarray, batch_size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Assembles global arrays [B, ...] from the rows of a batch that this process holds.

  Args:
    batch: arrays [b, ...].
    rows: indices of these rows in the global batch, from `rows_of_devices`.
    batch_size: B.
    mesh: shards the rows over its batch axes.
  """

  def one(x):
    def part(index):
      begin, end, _ = index[0].indices(batch_size)
      begin, end = np.searchsorted(rows, (begin, end))
      return x[begin:end]

    return jax.make_array_from_callback((batch_size, *x.shape[1:]), batch_sharding(mesh), part)

  return {name: one(x) for name, x in batch.items()}
