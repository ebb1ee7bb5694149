"""The collectives of a compiled step: their kinds, sizes and groups of devices."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re

import numpy as np

from clip_jax.costs.hlo import Instruction, Program

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program, with the number of times that it runs.

  Attributes:
    kind: one of `KINDS`.
    bytes: size of the whole array: the result of a gather, or the operand of any other kind.
    group: indices, in the mesh, of the devices in its first group, which communicate.
    times: number of runs per step.
    shape: shapes of the operands, for display.
    origin: the operation in the model that it comes from, as named by JAX.
  """

  kind: str
  bytes: float
  group: tuple[int, ...]
  times: int
  shape: str
  origin: str

  @property
  def wire_bytes(self) -> float:
    """Bytes that each device receives in a step, with ring algorithms.

    Source: Thakur et al. 2005, sec. 4: to gather or scatter n bytes over p devices, each of them
    receives (p - 1) / p n, and an all-reduce is a reduce-scatter and an all-gather.
    """
    p = len(self.group)
    share = {
      "all-reduce": 2 * (p - 1) / p,
      "collective-permute": 1.0,
      "collective-broadcast": 1.0,
    }.get(self.kind, (p - 1) / p)
    return self.times * self.bytes * share


def collectives(program: Program, devices: int) -> list[Collective]:
  """Returns the collectives of a program that communicate between devices, largest first."""
  found = {}
  for name, computation in program.computations.items():
    for instruction in computation.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind not in KINDS or not program.times[name]:
        continue
      # The TPU compiler spreads one collective, with one channel, over several fusions: one starts
      # it, one waits for it, and those between may be in a loop that overlaps with it.
      channel = re.search(r"channel_id=(\d+)", instruction.attributes)
      key = channel[1] if channel else (name, instruction.name)
      one = _collective(program, name, instruction, kind, devices)
      if len(one.group) > 1 and (key not in found or one.times < found[key].times):
        found[key] = one
  return sorted(found.values(), key=lambda c: -c.wire_bytes)


def totals_by_kind(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """Totals by kind, largest first: {"all-gather": {"count": per step, "bytes": per device}}."""
  table = {}
  for one in found:
    row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0})
    row["count"] += one.times
    row["bytes"] += one.wire_bytes
  return dict(sorted(table.items(), key=lambda item: -item[1]["bytes"]))


def _collective(program, name, instruction, kind, devices):
  group = _group(instruction, devices)
  size = program.sizes(name, instruction.operands)
  if kind == "all-gather":
    size *= len(group)
  # The TPU compiler runs an all-reduce followed by a slice as a reduce-scatter of this name.
  if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"
  operands = [program.computations[name][n] for n in instruction.operands]
  shapes = [array.text for operand in operands for array in operand.results]
  shape = ", ".join(shapes[:2]) + (f" and {len(shapes) - 2} more" if len(shapes) > 2 else "")
  return Collective(kind, size, group, program.times[name], shape, instruction.origin)


def _group(instruction: Instruction, devices: int) -> tuple[int, ...]:
  """The group of the first device, itself included."""
  text = instruction.attributes
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", text)
  if pairs:
    return next(_lists(pairs[1]), (0,))
  start = text.find("replica_groups=")
  if start < 0:
    return tuple(range(devices))
  text = text[start + len("replica_groups=") :]
  lists = re.match(r"\{(\{[\d,{} ]*\})?\}", text)
  if lists:
    return next(_lists(lists[1])) if lists[1] else tuple(range(devices))
  if text.startswith("mesh["):
    return _mesh_group(text)
  return _iota_group(text)


def _lists(text: str) -> Iterator[tuple[int, ...]]:
  for numbers in re.findall(r"\{([\d, ]+)\}", text):
    yield tuple(int(n) for n in numbers.split(","))


def _iota_group(text):
  """Parses the first group of the form `[groups,size]<=[shape]T(permutation)`."""
  form = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  result, shape = (_numbers(form[i]) for i in (1, 2))
  ids = np.arange(math.prod(shape)).reshape(shape)
  if form[3]:
    ids = ids.transpose(_numbers(form[3]))
  return tuple(ids.reshape(result[0], -1)[0].tolist())


def _mesh_group(text):
  """Parses the first group of the form `mesh['a'=4,'b'=2] {'a'}`: the devices along these axes.

  A sub-axis is written `'a':(2)4`: it has 4 devices, and the part of the axis before it has size 2.
  Devices are in ascending order, or in the order of `device_ids=([shape]T(permutation))`.
  """
  axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", text[: text.index("]")])}
  rest = text[text.index("]") + 1 :]
  ids = np.arange(math.prod(axes.values()))
  order = re.match(r",? *device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", rest)
  if order:
    ids = ids.reshape(_numbers(order[1])).transpose(_numbers(order[2]))
  ids = ids.reshape(list(axes.values()))
  chosen = re.search(r"\{([^}]*)\}", rest)[1]
  index = []
  named = {
    name: (int(before or 1), int(size or 0))
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
  }
  for name, n in axes.items():
    if name not in named:
      index.append([0])
      continue
    before, size = named[name]
    size = size or n
    inner = n // (before * size)
    index.append([i * inner for i in range(size)])
  return tuple(ids[np.ix_(*index)].ravel().tolist())


def _numbers(text):
  return [int(n) for n in text.split(",")]
