"""Profiles the device time of a compiled program, by instruction and by part of the train step."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax

from clip_jax.costs import hlo

# Named scopes of the train step; an instruction in several of them counts for the first one here.
PARTS = ("augmentation", "optimizer", "loss", "image_tower", "text_tower")
# Instructions that contain others, which account for their time.
_CONTAINERS = {"while", "call", "conditional", "async-start", "async-done"}


class ScopedInstruction(NamedTuple):
  """The opcode of an instruction of a compiled program, and the named scopes it was traced in."""

  opcode: str
  scopes: str


def scoped_instructions(text: str) -> dict[str, ScopedInstruction]:
  """Returns the instructions of a compiled program (`compiled.as_text()`) by name.

  A fusion takes the scopes of the matrix product in it. An instruction that the compiler left
  without scopes takes those of the computations that it calls or of its operands.
  """
  computations = hlo.Program(text).computations
  results, products = (
    {},
    {},
  )  # Scopes by computation: of its last instruction with scopes, likewise.
  for name, computation in computations.items():
    for instruction in computation.values():
      if scopes := _scopes(instruction):
        results[name] = scopes
        if instruction.opcode in ("dot", "convolution"):
          products[name] = scopes
  found = {}
  for computation in computations.values():
    for instruction in computation.values():
      own, called = _scopes(instruction), list(hlo.callees(instruction))
      known = [products.get(name) for name in called] + [own]
      if not own:
        known += [results.get(name) for name in called]
        known += [found[name].scopes for name in instruction.operands if name in found]
      scopes = next(filter(None, known), "")
      found[instruction.name] = ScopedInstruction(instruction.opcode, scopes)
  return found


def _scopes(instruction):
  """The scopes and name of the instruction's JAX operation, if it has scopes; otherwise ""."""
  return instruction.origin if "/" in instruction.origin else ""


def part_of(scopes: str) -> str:
  """The first of `PARTS` that an instruction's scopes contain, or "other"."""
  words = set(re.findall(r"\w+", scopes))
  return next((name for name in PARTS if name in words), "other")


def record_trace(run: Callable[[], Any], folder: Path | str) -> Path:
  """Runs a function under the profiler.

  Returns:
    Path of the trace in `folder`, for TensorBoard. The folder of the trace also contains
    perfetto_trace.json.gz, for ui.perfetto.dev.
  """
  folder, options = Path(folder), jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # It slows down the host and records nothing about the device.
  before = set(folder.rglob("*.xplane.pb"))
  with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
    jax.block_until_ready(run())
  return max(set(folder.rglob("*.xplane.pb")) - before)


def device_seconds(trace: Path | str, program: Mapping[str, ScopedInstruction]) -> Counter:
  """Sums the seconds spent in each instruction of a program, by name, over devices and runs."""
  seconds = Counter()
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        name = str(stats.get("hlo_op", event.name if plane.name.startswith("/device:TPU") else ""))
        if name in program and program[name].opcode not in _CONTAINERS:
          seconds[name] += event.duration_ns / 1e9
  return seconds


def shares_by_part(
  seconds: Mapping[str, float], program: Mapping[str, ScopedInstruction]
) -> dict[str, float]:
  """Returns the share of device time in each of `PARTS` and in "other"; the shares sum to 1."""
  shares, total = dict.fromkeys((*PARTS, "other"), 0.0), sum(seconds.values())
  for name, value in seconds.items():
    shares[part_of(program[name].scopes)] += value / total
  return shares


def most_expensive(
  seconds: Mapping[str, float], program: Mapping[str, ScopedInstruction], most: int = 10
) -> list[tuple[str, float, str]]:
  """Returns (instruction, share of device time, scopes) of the most expensive instructions."""
  total = sum(seconds.values())
  return [
    (name, value / total, _abbreviate(program[name].scopes))
    for name, value in Counter(seconds).most_common(most)
  ]


def _abbreviate(scopes: str, most: int = 70) -> str:
  """Drops the name of the program, and shortens a long list of scopes from the left."""
  scopes = scopes.partition("/")[2] or scopes
  return scopes if len(scopes) <= most else "..." + scopes[-most:]
