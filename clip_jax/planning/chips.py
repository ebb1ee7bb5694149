"""The chips that can be planned for and their interconnects, with the sources of the figures."""

import dataclasses
import math
import re

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """The figures of one chip, and of its host.

  Attributes:
    flops: peak bfloat16 FLOP/s, without sparsity.
    memory: bytes of HBM available to programs: without what a TPU reserves, or as reported by the
      driver of a GPU.
    bandwidth: bytes/s between HBM and the chip.
    link_bandwidth: bytes/s in one direction over one link to a neighbour (TPU), or received from
      all other chips in the host (GPU).
    network_bandwidth: bytes/s that a chip receives from other slices (TPU) or other hosts (GPU).
    float32_cost: ratio of the time of a float32 matrix product to that of a bfloat16 one. A TPU
      computes it as six bfloat16 products.
    torus_dimensions: dimensions of the torus; 0 for a switch that connects all chips of a host.
    ring_multiple: a side of a slice is a ring if its length is a multiple of this.
    chips_per_host, cores_per_host: number of chips and virtual CPUs per host.
    device_kind: JAX's `device_kind`.
    clock: frequency in Hz of the cycles that the TPU compiler counts; None for GPUs.
  """

  flops: float
  memory: float
  bandwidth: float
  link_bandwidth: float
  network_bandwidth: float
  float32_cost: float
  torus_dimensions: int
  ring_multiple: int
  chips_per_host: int
  cores_per_host: int
  device_kind: str
  clock: float | None = None

  @property
  def usable_memory(self) -> float:
    """Bytes of HBM that one program can use.

    On a GPU this is the share that JAX preallocates. The rest is used by CUDA, its libraries and
    NCCL. So this is the limit with default settings; XLA_CLIENT_MEM_FRACTION can raise it.
    """
    return self.memory * (1 if self.torus_dimensions else PREALLOCATED)


# The share of a GPU's memory that JAX preallocates, unless XLA_CLIENT_MEM_FRACTION (formerly
# XLA_PYTHON_CLIENT_MEM_FRACTION) is set: docs.jax.dev/en/latest/gpu_memory_allocation.html.
# Versions after 0.10.2 may allocate more, if it is free, once that is full.
PREALLOCATED = 0.75

# TPU: FLOP/s, HBM, link and DCN figures are from Google's architecture pages for each generation
# (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e). One-way link bandwidths, and which sides
# are rings, are from "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus). Hosts are the
# virtual machines of multi-host slices: ct4p-hightpu-4t, ct5lp-hightpu-4t, ct5p-hightpu-4t and
# ct6e-standard-4t. v4's DCN is 200 Gbit/s per host. HBM is what libtpu 0.0.42 grants.
# Clocks are FLOP/s divided by the FLOPs of the MXUs in a cycle, two for each multiply-add:
# 4 x 128 x 128 multiply-adds in v5e, twice as many in v4 and v5p, which have two cores, and
# 4 x 256 x 256 in v6e. Google's pages give both 2 and 4 as the number of MXUs of v6e. libtpu 0.0.42
# estimates 301,616 cycles for a product of 4,096 x 4,096 x 4,096, which is 227,838 multiply-adds
# per cycle, more than 2 MXUs can do.
# GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200; HBM as reported by
# drivers (OpenXLA's xla/backends/gpu/target_config/specs). One direction of NVLink has half of the
# stated bandwidth. The network is one adapter per GPU (200 Gbit/s for A100, else 400). Hosts are
# Google's a2-ultragpu-8g, a3-highgpu-8g, a3-ultragpu-8g and a4-highgpu-8g.
CHIPS = {
  "v4": Chip(275e12, 30.75 * 2**30, 1228e9, 45e9, 6.25e9, 6, 3, 4, 4, 240, "TPU v4", 1.05e9),
  "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 50e9, 3.125e9, 6, 2, 16, 4, 112, "TPU v5 lite", 1.5e9),
  "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 100e9, 6.25e9, 6, 3, 4, 4, 208, "TPU v5", 1.75e9),
  "v6e": Chip(
    918e12, 31.25 * 2**30, 1638e9, 100e9, 12.5e9, 6, 2, 16, 4, 180, "TPU v6 lite", 1.75e9
  ),
  "a100": Chip(312e12, 79.25 * 2**30, 2039e9, 300e9, 25e9, 16, 0, 1, 8, 96, "A100 80GB"),
  "h100": Chip(989e12, 79.11 * 2**30, 3350e9, 450e9, 50e9, 15, 0, 1, 8, 208, "H100 80GB"),
  "h200": Chip(989e12, 141 * 2**30, 4800e9, 450e9, 50e9, 15, 0, 1, 8, 224, "H200"),
  "b200": Chip(2250e12, 178.36 * 2**30, 7700e9, 900e9, 50e9, 28, 0, 1, 8, 224, "B200"),
}
# The topologies that `--topology=all` compares: 64 chips of each TPU.
COMPARED_TOPOLOGIES = ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or more slices of chips: `v5e:16x16`, `2xv5e:16x16` for two slices, `h100:8`.

  Attributes:
    name: name of the chip in `CHIPS`.
    shape: number of chips along each side of a slice; (n,) for GPUs.
    slices: number of slices.
  """

  name: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """The figures of its chip."""
    return CHIPS[self.name]

  @property
  def is_tpu(self) -> bool:
    """Whether the chips are TPUs, which are wired in a torus."""
    return self.chip.torus_dimensions > 0

  @property
  def devices(self) -> int:
    """Number of chips in all slices."""
    return self.slices * math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """Number of hosts of all slices."""
    return self.slices * -(-math.prod(self.shape) // self.chip.chips_per_host)

  def __str__(self) -> str:
    slices = f"{self.slices}x" if self.slices > 1 else ""
    return f"{slices}{self.name}:{'x'.join(map(str, self.shape))}"

  def location(self, device: int) -> tuple[int, ...]:
    """Location of a device, by its index: (slice or host, then its coordinates there)."""
    if not self.is_tpu:
      return divmod(device, self.chip.chips_per_host)
    return tuple(int(i) for i in _unravel(device, (self.slices, *self.shape)))

  def bandwidth(self, locations: list[tuple[int, ...]]) -> float:
    """Bytes/s that each of a group of devices receives from the others.

    In a torus, this adds up the links along all sides that the group extends over: two for each
    side that is a ring, and one for an open side, because the devices at its ends have only one.
    Across slices or hosts, it is the bandwidth of the network.

    Args:
      locations: that of each device of the group, (slice or host, then its coordinates there).
    """
    if len({location[0] for location in locations}) > 1:
      return self.chip.network_bandwidth
    if not self.is_tpu:
      return self.chip.link_bandwidth
    sides = [
      side
      for i, side in enumerate(self.shape)
      if len({location[1 + i] for location in locations}) > 1
    ]
    return self.chip.link_bandwidth * max(
      1, sum(1 if side % self.chip.ring_multiple else 2 for side in sides)
    )


def _unravel(index, shape):
  location = []
  for side in reversed(shape):
    index, i = divmod(index, side)
    location.append(i)
  return reversed(location)


def parse_topology(text: str) -> Topology:
  """Parses a topology such as "v5e:16x16", "2xv5e:16x16" or "h100:8".

  Raises:
    UserError: the text is malformed, names an unknown chip or has the wrong number of sides.
  """
  form = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", text.strip().lower())
  if not form:
    raise UserError(
      f"--topology={text} is not CHIP:SIDES, as in v5e:16x16, v4:4x4x4, 2xv5e:16x16 "
      f"(two slices), h100:8, or all. Chips: {', '.join(CHIPS)}."
    )
  slices, name, sides = int(form[1] or 1), form[2], tuple(int(n) for n in form[3].split("x"))
  if name not in CHIPS:
    raise UserError(
      f"There is no chip {name!r}; there are {', '.join(CHIPS)}.{did_you_mean(name, CHIPS)}"
    )
  chip = CHIPS[name]
  if len(sides) != max(1, chip.torus_dimensions) or slices < 1 or min(sides) < 1:
    example = {0: "8", 2: "4x8", 3: "2x2x4"}[chip.torus_dimensions]
    raise UserError(
      f"--topology={text}: slices of {name} have {max(1, chip.torus_dimensions)} sides of "
      f"1 chip or more, as in {name}:{example}."
    )
  if slices > 1 and not chip.torus_dimensions:
    raise UserError(
      f"--topology={text}: GPUs come in hosts of {chip.chips_per_host}, not in slices. "
      f"Write {name}:{slices * sides[0]}."
    )
  return Topology(name, sides, slices)
