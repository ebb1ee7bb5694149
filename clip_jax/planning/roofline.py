"""How long a step must take at least, and what it would wait for.

Four things happen in a step: products, traffic with main memory, talk between chips, and examples
being made. Each takes at least its amount over its rate. All of them at once take at least as long
as the longest (the roofline), and no longer than one after the other, but for what no rate is
known of: latencies, and elementwise work that is not bound by memory.

Source: Williams et al. 2009 (Roofline), with more than two roofs.
"""

from collections.abc import Sequence
import dataclasses

from clip_jax.planning.chips import Topology
from clip_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds a step of each; None where the amount is not known.

  Attributes:
    compute, memory, interconnect: of the chips.
    input: of the hosts' processors, to make the examples; they work beside the chips.
  """
  compute: float
  memory: float | None
  interconnect: float | None
  input: float

  @property
  def known(self) -> dict[str, float]:
    """Seconds by name, of what there is a number for."""
    return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

  @property
  def binds(self) -> str:
    """Which of the four takes longest."""
    return max(self.known, key=self.known.get)

  @property
  def best(self) -> float:
    """Seconds a step if all overlap."""
    return max(self.known.values())

  @property
  def worst(self) -> float:
    """Seconds a step if nothing on the chip overlaps."""
    return max(sum(v for n, v in self.known.items() if n != "input"), self.input)


def compute_seconds(weighted_flops: float, topology: Topology) -> float:
  """Time of so many FLOPs, those of exact products weighted, shared by all chips evenly."""
  return weighted_flops / (topology.devices * topology.chip.flops)


def interconnect_seconds(found: Sequence[Collective], places: Sequence[tuple[int, ...]],
                         topology: Topology) -> float:
  """Time of all collectives one after the other.

  Args:
    places: where each device of the mesh, in its order, lies in the topology.
  """
  return sum(one.wire_bytes / topology.bandwidth([places[i] for i in one.group]) for one in found)


def input_seconds(batch_size: int, topology: Topology, images_per_core: float) -> float:
  """Time that the cores of all hosts take for the examples of a step."""
  return batch_size / (topology.hosts * topology.chip.host_cores * images_per_core)
