"""The rows that each process holds, and their placement on devices."""

import jax
import numpy as np
import pytest

from clip_jax.parallel import mesh as mesh_lib, placement
from clip_jax.parallel.placement import rows_of_devices, rows_to_global


@pytest.mark.parametrize("order", [range(8), (0, 4, 1, 5, 2, 6, 3, 7)])
def test_hosts_hold_every_row_once_for_any_device_order(order):
  devices = jax.devices()
  mesh = mesh_lib.make_mesh(4, 2, devices=[devices[i] for i in order])
  hosts = [devices[:4], devices[4:]]  # As if there were two hosts with four devices each.
  held = [rows_of_devices(host, 16, mesh) for host in hosts]
  np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(16))
  # By hand: the k-th device of the mesh has rows 2k and 2k + 1.
  places = {device: k for k, device in enumerate(mesh.devices.flat)}
  for host, rows in zip(hosts, held):
    assert rows.tolist() == sorted(2 * places[d] + r for d in host for r in (0, 1))


def test_rows_are_placed_in_order():
  mesh = mesh_lib.make_mesh(2, 4)
  x = np.arange(48).reshape(16, 3)
  y = rows_to_global({"x": x}, rows_of_devices(mesh.local_devices, 16, mesh), 16, mesh)["x"]
  np.testing.assert_array_equal(y, x)
  assert y.sharding == placement.batch_sharding(mesh)
