"""Step times, compared with values computed by hand."""

import pytest

from clip_jax.planning import roofline
from clip_jax.planning.chips import parse_topology
from clip_jax.planning.collectives import Collective


def test_compute_is_flops_over_the_peak_of_all_chips():
  """64 v5e chips of 197 TFLOP/s."""
  assert roofline.compute_seconds(64 * 197e12 / 2, parse_topology("v5e:8x8")) == pytest.approx(0.5)


def collective(kind, size, group, times=1):
  return Collective(kind, size, tuple(group), times, "", "")


def test_interconnect_is_received_bytes_over_the_links():
  """v5e:4x4 has no rings: a gather over all 16 has two links of 50 GB/s, one over a row has one."""
  slice_ = parse_topology("v5e:4x4")
  locations = [slice_.location(i) for i in range(16)]
  seconds = lambda *found: roofline.interconnect_seconds(found, locations, slice_)
  all_chips, row = range(16), range(4)
  assert seconds(collective("all-gather", 16e9, all_chips)) == pytest.approx(15e9 / 100e9)
  assert seconds(collective("all-gather", 16e9, row)) == pytest.approx(12e9 / 50e9)
  thrice = collective("all-reduce", 16e9, all_chips, times=3)
  assert seconds(thrice) == pytest.approx(3 * 30e9 / 100e9)
  assert seconds(
    collective("all-gather", 16e9, all_chips), collective("all-gather", 16e9, row)
  ) == (pytest.approx(0.15 + 0.24))


def test_input_is_shared_by_the_cores_of_all_hosts():
  """16 hosts of 112 cores."""
  assert roofline.input_seconds(16 * 112 * 480, parse_topology("v5e:8x8"), 480.0) == pytest.approx(
    1.0
  )


def test_slowest_part_is_the_bottleneck_and_chip_parts_add_up_without_overlap():
  roof = roofline.Roofline(compute=0.4, memory=0.3, interconnect=0.1, input=0.5)
  assert (roof.bottleneck, roof.best) == ("input", 0.5)
  assert roof.worst == pytest.approx(0.8)
  assert roofline.Roofline(compute=0.4, memory=0.3, interconnect=0.1, input=2.0).worst == 2.0


def test_unknown_parts_are_left_out():
  roof = roofline.Roofline(compute=0.4, memory=None, interconnect=None, input=0.1)
  assert (roof.bottleneck, roof.best, roof.worst) == ("compute", 0.4, 0.4)
  assert roof.known == {"compute": 0.4, "input": 0.1}
