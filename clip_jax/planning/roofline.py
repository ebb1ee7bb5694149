"""Bounds on the time of a step, and its bottleneck.

Four things take time in a step: matrix products, traffic with main memory, communication between
chips, and making the examples. Each takes at least its amount divided by its rate. If all of them
overlap, the step takes as long as the slowest (the roofline); if none do, as long as their sum. The
bounds leave out latencies and elementwise work that is not bound by memory, which have no known
rate.

Source: Williams et al. 2009 (Roofline), with more than two roofs.
"""

from collections.abc import Sequence
import dataclasses

from clip_jax.planning.chips import Topology
from clip_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds per step of each part; None if its amount is unknown.

  Attributes:
    compute, memory, interconnect: time on the chips.
    input: time of the hosts' CPUs to make the examples, which overlaps with the chips.
  """

  compute: float
  memory: float | None
  interconnect: float | None
  input: float

  @property
  def known(self) -> dict[str, float]:
    """Seconds by name, of the parts that are known."""
    return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

  @property
  def bottleneck(self) -> str:
    """Name of the part that takes longest."""
    return max(self.known, key=self.known.get)

  @property
  def best(self) -> float:
    """Seconds per step if all parts overlap."""
    return max(self.known.values())

  @property
  def worst(self) -> float:
    """Seconds per step if nothing on the chips overlaps."""
    return max(sum(v for n, v in self.known.items() if n != "input"), self.input)


def compute_seconds(weighted_flops: float, topology: Topology) -> float:
  """Time of FLOPs, those of exact products weighted, divided evenly among all chips."""
  return weighted_flops / (topology.devices * topology.chip.flops)


def interconnect_seconds(
  found: Sequence[Collective], locations: Sequence[tuple[int, ...]], topology: Topology
) -> float:
  """Time of all collectives, run one after the other.

  Args:
    found: the collectives.
    locations: location in the topology of each device of the mesh, in the order of the mesh.
    topology: the chips and their interconnect.
  """
  return sum(
    one.wire_bytes / topology.bandwidth([locations[i] for i in one.group]) for one in found
  )


def input_seconds(batch_size: int, topology: Topology, images_per_core: float) -> float:
  """Time in which the CPU cores of all hosts make the examples of a step."""
  return batch_size / (topology.hosts * topology.chip.cores_per_host * images_per_core)
