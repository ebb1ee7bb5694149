"""Parsing of topologies, and the bandwidth between their chips."""

import pytest

from clip_jax.errors import UserError
from clip_jax.planning.chips import CHIPS, COMPARED_TOPOLOGIES, Topology, parse_topology


@pytest.mark.parametrize(
  "text, devices, hosts",
  [
    ("v5e:16x16", 256, 64),
    ("v4:2x2x4", 16, 4),
    ("2xv5e:4x8", 64, 16),
    ("h100:8", 8, 1),
    ("h200:20", 20, 3),
    ("V6E:2x2", 4, 1),
  ],
)
def test_topology_has_devices_and_hosts(text, devices, hosts):
  parsed = parse_topology(text)
  assert (parsed.devices, parsed.hosts) == (devices, hosts)
  assert str(parsed) == text.lower()
  assert parse_topology(str(parsed)) == parsed


@pytest.mark.parametrize(
  "text, message",
  [
    ("v5e-16", "v5e-16 is not CHIP:SIDES, as in v5e:16x16"),
    ("v5e:", "is not CHIP:SIDES"),
    ("v5f:4x4", "no chip 'v5f'; there are v4.*Did you mean 'v5.'"),
    ("tpu:4x4", "no chip 'tpu'"),
    ("v5e:4x4x4", "slices of v5e have 2 sides of 1 chip or more, as in v5e:4x8"),
    ("v4:4x4", "slices of v4 have 3 sides"),
    ("v5e:0x4", "slices of v5e have 2 sides of 1 chip or more"),
    ("0xv5e:4x4", "slices of v5e have 2 sides"),
    ("h100:2x4", "slices of h100 have 1 sides of 1 chip or more, as in h100:8"),
    ("2xh100:8", "GPUs come in hosts of 8, not in slices. Write h100:16"),
  ],
)
def test_malformed_topology_is_an_error_with_a_suggestion(text, message):
  with pytest.raises(UserError, match=message):
    parse_topology(text)


def test_v5e_pod_matches_its_data_sheet():
  """50.63 PFLOP/s for a pod of 256, and 51.2 TB/s of all-reduce, which is 400 GB/s per chip."""
  pod = parse_topology("v5e:16x16")
  assert pod.devices * pod.chip.flops == pytest.approx(50.63e15, rel=0.01)
  all_chips = [pod.location(i) for i in range(256)]
  assert 256 * pod.bandwidth(all_chips) == pytest.approx(51.2e12)


@pytest.mark.parametrize(
  "name, group, links",
  [
    ("v5e:16x16", [(0, 0, 0), (0, 0, 1)], 2),  # Along a side that is a ring.
    ("v5e:8x16", [(0, 0, 0), (0, 1, 0)], 1),  # Along an open side.
    ("v5e:8x16", [(0, 0, 0), (0, 1, 1)], 3),  # Along both sides.
    ("v5e:4x4", [(0, 0, 0), (0, 3, 3)], 2),
    ("v4:4x4x8", [(0, 0, 0, 0), (0, 1, 1, 1)], 6),
    ("v4:2x2x1", [(0, 0, 0, 0), (0, 1, 0, 0)], 1),
  ],
)
def test_bandwidth_of_a_group_adds_up_the_sides_it_extends_over(name, group, links):
  parsed = parse_topology(name)
  assert parsed.bandwidth(group) == links * parsed.chip.link_bandwidth


def test_slices_and_hosts_communicate_over_the_network():
  two = parse_topology("2xv5e:4x4")
  assert [two.location(i) for i in (0, 5, 16)] == [(0, 0, 0), (0, 1, 1), (1, 0, 0)]
  assert two.bandwidth([two.location(0), two.location(16)]) == two.chip.network_bandwidth
  gpus = parse_topology("h100:16")
  assert gpus.bandwidth([gpus.location(0), gpus.location(7)]) == gpus.chip.link_bandwidth
  assert gpus.bandwidth([gpus.location(0), gpus.location(8)]) == gpus.chip.network_bandwidth


def test_compared_topologies_have_64_chips_of_each_tpu():
  topologies = [parse_topology(text) for text in COMPARED_TOPOLOGIES]
  assert [t.name for t in topologies] == [
    name for name, chip in CHIPS.items() if chip.torus_dimensions
  ]
  assert {t.devices for t in topologies} == {64}


@pytest.mark.parametrize("chip", CHIPS)
def test_peak_flops_and_bandwidths_of_a_chip_are_in_order(chip):
  """A figure that is wrong by a factor of a thousand would break the order."""
  one = Topology(chip, (8,)).chip
  assert 100 < one.flops / one.bandwidth < 1000
  assert 5 < one.bandwidth / one.link_bandwidth < 50
  assert 2 < one.link_bandwidth / one.network_bandwidth < 20
  assert 16e9 <= one.memory <= 200e9


def test_usable_memory_is_all_memory_of_a_tpu_and_three_quarters_of_a_gpu():
  assert CHIPS["v5e"].usable_memory == CHIPS["v5e"].memory
  assert CHIPS["h100"].usable_memory == pytest.approx(
    0.75 * 84942979072, rel=1e-4
  )  # As its driver reports.


def test_tpu_clock_times_mxu_size_is_peak_flops():
  """MXUs do 128 x 128 or 256 x 256 multiply-adds per cycle, of two FLOPs each."""
  for name, mxus in (
    ("v4", 8 * 128**2),
    ("v5e", 4 * 128**2),
    ("v5p", 8 * 128**2),
    ("v6e", 4 * 256**2),
  ):
    assert CHIPS[name].flops / CHIPS[name].clock == pytest.approx(2 * mxus, rel=5e-3)
  assert {chip.clock for chip in CHIPS.values() if not chip.torus_dimensions} == {None}
