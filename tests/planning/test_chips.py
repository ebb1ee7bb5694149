"""Topologies: what they are written as, and how fast their chips talk."""

import pytest

from clip_jax.errors import UserError
from clip_jax.planning.chips import CHIPS, COMPARED, Topology, topology


@pytest.mark.parametrize("text, devices, hosts", [
    ("v5e:16x16", 256, 64), ("v4:2x2x4", 16, 4), ("2xv5e:4x8", 64, 16), ("h100:8", 8, 1),
    ("h200:20", 20, 3), ("V6E:2x2", 4, 1),
])
def test_a_topology_says_how_many_chips_and_hosts_it_has(text, devices, hosts):
  made = topology(text)
  assert (made.devices, made.hosts) == (devices, hosts)
  assert str(made) == text.lower()
  assert topology(str(made)) == made


@pytest.mark.parametrize("text, message", [
    ("v5e-16", "v5e-16 is not CHIP:SIDES, as in v5e:16x16"),
    ("v5e:", "is not CHIP:SIDES"),
    ("v5f:4x4", "no chip 'v5f'; there are v4.*Did you mean 'v5.'"),
    ("tpu:4x4", "no chip 'tpu'"),
    ("v5e:4x4x4", "slices of v5e have 2 sides of 1 chip or more, as in v5e:4x8"),
    ("v4:4x4", "slices of v4 have 3 sides"),
    ("v5e:0x4", "slices of v5e have 2 sides of 1 chip or more"),
    ("0xv5e:4x4", "slices of v5e have 2 sides"),
    ("h100:2x4", "slices of h100 have 1 sides of 1 chip or more, as in h100:8"),
    ("2xh100:8", "GPUs lie in hosts of 8, not in slices. Write h100:16"),
])
def test_a_mistyped_topology_is_told_what_was_meant(text, message):
  with pytest.raises(UserError, match=message):
    topology(text)


def test_a_pod_of_v5e_has_the_figures_of_its_page():
  """50.63 PFLOPS a pod of 256, 51.2 TB/s of all-reduce: 400 GB/s a chip in and out."""
  pod = topology("v5e:16x16")
  assert pod.devices * pod.chip.flops == pytest.approx(50.63e15, rel=0.01)
  everyone = [pod.place(i) for i in range(256)]
  assert 256 * pod.bandwidth(everyone) == pytest.approx(51.2e12)


@pytest.mark.parametrize("name, group, links", [
    ("v5e:16x16", [(0, 0, 0), (0, 0, 1)], 2),                 # Along one side, which is a ring.
    ("v5e:8x16", [(0, 0, 0), (0, 1, 0)], 1),                  # Along one that is not.
    ("v5e:8x16", [(0, 0, 0), (0, 1, 1)], 3),                  # Along both.
    ("v5e:4x4", [(0, 0, 0), (0, 3, 3)], 2),
    ("v4:4x4x8", [(0, 0, 0, 0), (0, 1, 1, 1)], 6),
    ("v4:2x2x1", [(0, 0, 0, 0), (0, 1, 0, 0)], 1),
])
def test_a_group_talks_over_the_sides_along_which_it_reaches(name, group, links):
  made = topology(name)
  assert made.bandwidth(group) == links * made.chip.link


def test_slices_and_hosts_talk_over_the_network():
  two = topology("2xv5e:4x4")
  assert [two.place(i) for i in (0, 5, 16)] == [(0, 0, 0), (0, 1, 1), (1, 0, 0)]
  assert two.bandwidth([two.place(0), two.place(16)]) == two.chip.network
  gpus = topology("h100:16")
  assert gpus.bandwidth([gpus.place(0), gpus.place(7)]) == gpus.chip.link
  assert gpus.bandwidth([gpus.place(0), gpus.place(8)]) == gpus.chip.network


def test_what_is_compared_is_as_many_chips_of_each_kind_of_tpu():
  made = [topology(text) for text in COMPARED]
  assert [t.name for t in made] == [name for name, chip in CHIPS.items() if chip.dimensions]
  assert {t.devices for t in made} == {64}


@pytest.mark.parametrize("chip", CHIPS)
def test_a_chip_does_more_than_it_reads_and_reads_more_than_it_is_sent(chip):
  """A slip of a thousand in the table would break the order."""
  one = Topology(chip, (8,)).chip
  assert 100 < one.flops / one.bandwidth < 1000
  assert 5 < one.bandwidth / one.link < 50
  assert 2 < one.link / one.network < 20
  assert 16e9 <= one.memory <= 200e9


def test_a_program_has_all_that_a_tpu_leaves_and_three_quarters_of_a_gpu():
  assert CHIPS["v5e"].room == CHIPS["v5e"].memory
  assert CHIPS["h100"].room == pytest.approx(0.75 * 84942979072, rel=1e-4)  # What its driver says.


def test_in_a_cycle_a_tpu_does_the_products_of_its_mxus():
  """128 x 128 each, or 256 x 256, two FLOPs for each place."""
  for name, mxus in (("v4", 8 * 128**2), ("v5e", 4 * 128**2), ("v5p", 8 * 128**2),
                     ("v6e", 4 * 256**2)):
    assert CHIPS[name].flops / CHIPS[name].clock == pytest.approx(2 * mxus, rel=5e-3)
  assert {chip.clock for chip in CHIPS.values() if not chip.dimensions} == {None}
