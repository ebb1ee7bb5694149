"""Where a compiled program's time goes on the device: a trace, read by instruction and by part."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax

# Named scopes of the train step, in the order in which an instruction inside several is counted.
PARTS = ("augmentation", "optimizer", "loss", "image_tower", "text_tower")
# Instructions that hold others: their time is that of the ones inside.
_HOLDING = {"while", "call", "conditional", "async-start", "async-done"}


class Instruction(NamedTuple):
  """An instruction of a compiled program: what it does, and the scopes that it was written in."""
  opcode: str
  scopes: str


def instructions(text: str) -> dict[str, Instruction]:
  """The instructions of a compiled program, from its text (`compiled.as_text()`), by name."""
  found, inside, products, reads = {}, {}, {}, {}
  computation = ""
  for line in text.splitlines():
    if not line.startswith(" "):
      computation = line.removeprefix("ENTRY ").removeprefix("%").partition(" ")[0]
    made = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = \S.*?[\s}\])]([a-z][a-z0-9-]*)\((.*)", line)
    if not made:
      continue
    name, opcode, rest = made.groups()
    scopes = re.search(r'op_name="([^"]*/[^"]*)"', rest)
    found[name] = Instruction(opcode, scopes[1] if scopes else "")
    reads[name] = re.findall(r"%([\w.-]+)", rest)
    if scopes:
      inside[computation] = scopes[1]  # In the end, that of what it all leads to.
      if opcode in ("dot", "convolution"):
        products[computation] = scopes[1]
  # A fusion is of the product in it; what the compiler left unnamed, of what it holds or reads.
  for name, others in reads.items():
    named = lambda table: [table[o] for o in others if table.get(o)]
    known = (named(products) or [found[name].scopes] if found[name].scopes
             else named(products) + named(inside) + [found[o].scopes for o in others
                                                     if o in found and found[o].scopes])
    found[name] = found[name]._replace(scopes=known[0] if known else "")
  return found


def part(scopes: str) -> str:
  """Which of `PARTS` an instruction belongs to; "other" outside of all."""
  words = set(re.findall(r"\w+", scopes))
  return next((name for name in PARTS if name in words), "other")


def traced(run: Callable[[], Any], folder: Path | str) -> Path:
  """Runs something under the profiler.

  Returns:
    The trace in `folder`, which TensorBoard and, for the file perfetto_trace.json.gz beside it,
    ui.perfetto.dev show.
  """
  folder, options = Path(folder), jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # It would slow the host down and tell nothing of the device.
  before = set(folder.rglob("*.xplane.pb"))
  with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
    jax.block_until_ready(run())
  return max(set(folder.rglob("*.xplane.pb")) - before)


def device_seconds(trace: Path | str, program: Mapping[str, Instruction]) -> Counter:
  """Seconds in each instruction of a program, by name, summed over devices and runs."""
  seconds = Counter()
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        name = str(stats.get("hlo_op", event.name if plane.name.startswith("/device:TPU") else ""))
        if name in program and program[name].opcode not in _HOLDING:
          seconds[name] += event.duration_ns / 1e9
  return seconds


def by_part(seconds: Mapping[str, float], program: Mapping[str, Instruction]) -> dict[str, float]:
  """Share of the device's time in each of `PARTS` and outside of them; they sum to 1."""
  shares, total = dict.fromkeys((*PARTS, "other"), 0.0), sum(seconds.values())
  for name, value in seconds.items():
    shares[part(program[name].scopes)] += value / total
  return shares


def dearest(seconds: Mapping[str, float], program: Mapping[str, Instruction],
            most: int = 10) -> list[tuple[str, float, str]]:
  """(instruction, share of the device's time, where it was written) of those that take most."""
  total = sum(seconds.values())
  return [(name, value / total, _short(program[name].scopes))
          for name, value in Counter(seconds).most_common(most)]


def _short(scopes: str, most: int = 70) -> str:
  """The end of a long list of scopes, without the program's own name."""
  scopes = scopes.partition("/")[2] or scopes
  return scopes if len(scopes) <= most else "..." + scopes[-most:]
