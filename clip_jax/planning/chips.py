"""The chips that can be planned for, and how they are wired; facts, each with its source."""

import dataclasses
import difflib
import math
import re

from clip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, and its share of the host that it sits in.

  Attributes:
    flops: bfloat16 FLOP/s at most, without sparsity.
    memory: bytes of HBM that are there for programs: what TPUs do not keep for themselves, what the
      drivers of GPUs report.
    bandwidth: bytes/s between HBM and the chip.
    link: bytes/s that one link to a neighbour carries in one direction (TPU), or that a chip gets
      from all others in its host (GPU).
    network: bytes/s that a chip gets from other slices (TPU) or other hosts (GPU).
    exact: how many times as long a product of float32 takes as one of bfloat16. A TPU makes it of
      six bfloat16 products.
    dimensions: of the torus; 0 for a switch, which joins all chips of a host.
    ring: a side of a slice that is a multiple of this is closed to a ring.
    host_chips, host_cores: chips and virtual CPUs of a host.
    kind: what JAX calls it.
    clock: in Hz, of the cycles that the TPU's compiler counts; None for GPUs.
  """
  flops: float
  memory: float
  bandwidth: float
  link: float
  network: float
  exact: float
  dimensions: int
  ring: int
  host_chips: int
  host_cores: int
  kind: str
  clock: float | None = None

  @property
  def room(self) -> float:
    """Bytes of HBM that one program can have.

    On a GPU that is what JAX takes of the memory for all arrays and temporaries. What it leaves is
    not lost: CUDA itself, its libraries and NCCL have theirs there. So this is the limit that a run
    meets if it sets nothing, and not the last byte.
    """
    return self.memory * (1 if self.dimensions else PREALLOCATED)


# The share of a GPU's memory that JAX takes unless XLA_CLIENT_MEM_FRACTION, which was named
# XLA_PYTHON_CLIENT_MEM_FRACTION, says otherwise: docs.jax.dev/en/latest/gpu_memory_allocation.html.
# Versions after 0.10.2 may take more once that is full, of what is free then.
PREALLOCATED = 0.75

# TPU: FLOP/s, HBM, links and DCN as in Google's pages on the architecture of each generation
# (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e); bytes/s of a link in one direction, and
# which sides are rings, as in "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus);
# hosts are the virtual machines of several-host slices, ct4p-hightpu-4t, ct5lp-hightpu-4t,
# ct5p-hightpu-4t, ct6e-standard-4t. v4's DCN is 200 Gbit/s a host. HBM is what libtpu 0.0.42
# grants.
# Clocks are FLOP/s over what the MXUs do in a cycle, two FLOPs for each of 4 x 128 x 128
# multiply-adds in v5e, twice as many in v4 and v5p, which have two cores, and 4 x 256 x 256 in v6e.
# Google's pages say 2 and 4 of v6e's MXUs; libtpu 0.0.42 counts 301,616 cycles for a product of
# 4,096 x 4,096 x 4,096, 227,838 multiply-adds in each, for which 2 are too few.
# GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200, HBM as drivers report
# it (OpenXLA's xla/backends/gpu/target_config/specs); half of NVLink's bandwidth is one direction;
# the network is one adapter a GPU (200 Gbit/s for A100, else 400); hosts are Google's
# a2-ultragpu-8g, a3-highgpu-8g, a3-ultragpu-8g and a4-highgpu-8g.
CHIPS = {
    "v4": Chip(275e12, 30.75 * 2**30, 1228e9, 45e9, 6.25e9, 6, 3, 4, 4, 240, "TPU v4", 1.05e9),
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 50e9, 3.125e9, 6, 2, 16, 4, 112, "TPU v5 lite",
                1.5e9),
    "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 100e9, 6.25e9, 6, 3, 4, 4, 208, "TPU v5", 1.75e9),
    "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 100e9, 12.5e9, 6, 2, 16, 4, 180, "TPU v6 lite",
                1.75e9),
    "a100": Chip(312e12, 79.25 * 2**30, 2039e9, 300e9, 25e9, 16, 0, 1, 8, 96, "A100 80GB"),
    "h100": Chip(989e12, 79.11 * 2**30, 3350e9, 450e9, 50e9, 15, 0, 1, 8, 208, "H100 80GB"),
    "h200": Chip(989e12, 141 * 2**30, 4800e9, 450e9, 50e9, 15, 0, 1, 8, 224, "H200"),
    "b200": Chip(2250e12, 178.36 * 2**30, 7700e9, 900e9, 50e9, 28, 0, 1, 8, 224, "B200"),
}
# What `--topology=all` compares: 64 chips of each TPU.
COMPARED = ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of chips: `v5e:16x16`, `2xv5e:16x16` for two slices, `h100:8`.

  Attributes:
    name: of the chip.
    shape: chips along each side of a slice; (n,) for GPUs.
    slices: how many.
  """
  name: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """What one of them can do."""
    return CHIPS[self.name]

  @property
  def is_tpu(self) -> bool:
    """TPUs are wired in a grid."""
    return self.chip.dimensions > 0

  @property
  def devices(self) -> int:
    """In all slices."""
    return self.slices * math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """In all slices."""
    return self.slices * -(-math.prod(self.shape) // self.chip.host_chips)

  def __str__(self) -> str:
    slices = f"{self.slices}x" if self.slices > 1 else ""
    return f"{slices}{self.name}:{'x'.join(map(str, self.shape))}"

  def place(self, device: int) -> tuple[int, ...]:
    """(slice or host, then where in it) of the device at this place in the list."""
    if not self.is_tpu:
      return divmod(device, self.chip.host_chips)
    return tuple(int(i) for i in _unravel(device, (self.slices, *self.shape)))

  def bandwidth(self, places: list[tuple[int, ...]]) -> float:
    """Bytes/s that each of a group of devices gets from the others.

    In a torus, over all sides along which the group reaches: two links for each, where the side is
    a ring; on an open side those at the ends have one. Across slices or hosts, the network's.

    Args:
      places: of the group's devices, each (slice or host, then coordinates in it).
    """
    if len({place[0] for place in places}) > 1:
      return self.chip.network
    if not self.is_tpu:
      return self.chip.link
    sides = [side for i, side in enumerate(self.shape)
             if len({place[1 + i] for place in places}) > 1]
    return self.chip.link * max(1, sum(1 if side % self.chip.ring else 2 for side in sides))


def _unravel(index, shape):
  place = []
  for side in reversed(shape):
    index, i = divmod(index, side)
    place.append(i)
  return reversed(place)


def topology(text: str) -> Topology:
  """What a text such as "v5e:16x16", "2xv5e:16x16" or "h100:8" means.

  Raises:
    UserError: it is not of that form, or of no known chip, or of the wrong number of sides.
  """
  form = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", text.strip().lower())
  if not form:
    raise UserError(f"--topology={text} is not CHIP:SIDES, as in v5e:16x16, v4:4x4x4, 2xv5e:16x16 "
                    f"(two slices), h100:8, or all. Chips: {', '.join(CHIPS)}.")
  slices, name, sides = int(form[1] or 1), form[2], tuple(int(n) for n in form[3].split("x"))
  if name not in CHIPS:
    close = difflib.get_close_matches(name, CHIPS, 1)
    raise UserError(f"There is no chip {name!r}; there are {', '.join(CHIPS)}."
                    + (f" Did you mean {close[0]!r}?" if close else ""))
  chip = CHIPS[name]
  if len(sides) != max(1, chip.dimensions) or slices < 1 or min(sides) < 1:
    example = {0: "8", 2: "4x8", 3: "2x2x4"}[chip.dimensions]
    raise UserError(f"--topology={text}: slices of {name} have {max(1, chip.dimensions)} sides of "
                    f"1 chip or more, as in {name}:{example}.")
  if slices > 1 and not chip.dimensions:
    raise UserError(f"--topology={text}: GPUs lie in hosts of {chip.host_chips}, not in slices. "
                    f"Write {name}:{slices * sides[0]}.")
  return Topology(name, sides, slices)
