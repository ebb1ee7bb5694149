"""The rows that each process holds, and their placement on devices."""

from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from clip_jax.parallel import mesh as mesh_lib
from clip_jax.parallel.placement import batch_sharding, rows_of_devices, to_global

PACKAGE = Path(__file__).parents[2] / "clip_jax"


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
  rows = rows_of_devices(mesh.local_devices, 16, mesh)
  y = to_global({"x": x}, batch_sharding(mesh), rows=rows, batch_size=16)["x"]
  np.testing.assert_array_equal(y, x)
  assert y.sharding == batch_sharding(mesh)


def test_a_host_with_some_rows_supplies_those_of_its_devices(monkeypatch):
  devices = jax.devices()
  mesh = mesh_lib.make_mesh(4, 2, devices=[devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)])
  rows = rows_of_devices(devices[:4], 16, mesh)
  assert np.any(np.diff(rows) > 1)  # This host's rows are not contiguous.
  x = np.random.default_rng(0).normal(size=(16, 3))
  supplied = {}

  def make(shape, sharding, part):
    # As JAX calls it in the process of the first four devices.
    for device, index in sharding.devices_indices_map(shape).items():
      if device in devices[:4]:
        supplied[device] = (part(index), x[index])

  monkeypatch.setattr(jax, "make_array_from_callback", make)
  to_global(x[rows], batch_sharding(mesh), rows=rows, batch_size=16)
  assert len(supplied) == 4
  for part, expected in supplied.values():
    np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, ("data", "fsdp")), P("fsdp", "data")])
def test_whole_arrays_are_placed_with_any_sharding(spec):
  sharding = NamedSharding(mesh_lib.make_mesh(2, 4), spec)
  tree = {"a": np.arange(128).reshape(8, 16), "b": [np.ones((16, 8, 2), np.float32)]}
  placed = to_global(tree, sharding)
  jax.tree.map(np.testing.assert_array_equal, placed, tree)
  assert all(x.sharding == sharding for x in jax.tree.leaves(placed))
  assert placed["b"][0].dtype == np.float32


def test_arrays_reach_the_devices_in_one_way_only():
  users = [p for p in PACKAGE.rglob("*.py") if "jax.make_array_from" in p.read_text()]
  # Checkpoints are read shard by shard, straight to where each belongs.
  assert sorted(users) == [
    PACKAGE / "parallel/placement.py",
    PACKAGE / "pretrained/saved_arrays.py",
  ]
