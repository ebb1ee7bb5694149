"""Parses the text of a compiled program: its instructions, their sizes and how often each runs.

XLA's own cost analysis counts the body of a loop once, whatever its trip count, which is a twelfth
of the true cost for a stack of twelve blocks.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

# Bytes per element; tokens and opaque types have no size.
_BYTES = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "s8": 1,
  "u8": 1,
  "s16": 2,
  "u16": 2,
  "s32": 4,
  "u32": 4,
  "s64": 8,
  "u64": 8,
  "f16": 2,
  "bf16": 2,
  "f32": 4,
  "f64": 8,
  "c64": 8,
  "c128": 16,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array on one device: bytes without padding, and its memory space (0 is main memory)."""

  bytes: float
  space: int
  text: str


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a computation.

  Attributes:
    name, opcode: as in the text.
    results: the arrays that it returns; several for a tuple.
    operands: names of its operands, instructions of the same computation.
    literal: the value of a constant, the number of a parameter; otherwise empty.
    attributes: the text after the operands.
    root: whether its computation returns it.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  @property
  def bytes(self) -> float:
    """Total bytes of its results, without padding."""
    return sum(array.bytes for array in self.results)

  @property
  def origin(self) -> str:
    """The JAX operation that it comes from, with the named scopes around it; may be empty."""
    named = re.search(r'op_name="([^"]*)"', self.attributes)
    return named[1] if named else ""


class Program:
  """The computations of a compiled program.

  Attributes:
    computations: for each computation by name, its instructions by name.
    times: number of times that each computation runs in one run of the program.
    entry: name of the computation that is the program itself.
  """

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry, current = "", {}
    for line in text.splitlines():
      header = _HEADER.match(line)
      if header:
        current = self.computations[header[2]] = {}
        if header[1]:
          self.entry = header[2]
      elif _LINE.match(line):
        instruction = _parse_instruction(line)
        current[instruction.name] = instruction
    self.times = self._times()

  def _times(self):
    times = dict.fromkeys(self.computations, 0)
    times[self.entry] = 1
    # Callees come before their callers in the text.
    for name in reversed(self.computations):
      for instruction in self.computations[name].values():
        # An asynchronous call runs once, though each of its start, update and done may name it.
        if instruction.opcode.endswith(("-done", "-update")):
          continue
        runs = times[name] * self._trip_count(instruction)
        for called in callees(instruction):
          # Fusions that share a computation are counted at their call sites, so take one of them.
          times[called] = (
            max(times[called], runs) if instruction.opcode == "fusion" else times[called] + runs
          )
    return times

  def _trip_count(self, instruction):
    """Number of times that an instruction runs the computations that it calls."""
    if instruction.opcode != "while":
      return 1
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', instruction.attributes)
    if known:
      return int(known[1])
    # Otherwise the condition compares a counter, which starts at 0, with a constant.
    condition, body = (
      self.computations[re.search(rf"{part}=%?([\w.-]+)", instruction.attributes)[1]]
      for part in ("condition", "body")
    )
    limit = max((int(i.literal) for i in condition.values() if _is_number(i)), default=1)
    return max(1, -(-limit // self._step(condition, body)))

  def _step(self, condition, body):
    """The increment of a loop's counter."""
    place = {
      re.search(r"index=(\d+)", i.attributes)[1]
      for i in condition.values()
      if i.opcode == "get-tuple-element"
    }
    root = next(i for i in body.values() if i.root)
    if len(place) != 1 or root.opcode != "tuple":
      return 1
    counted = body.get(root.operands[int(place.pop())])
    while counted and counted.opcode in ("copy", "bitcast"):
      counted = body.get(counted.operands[0])
    steps = [
      int(body[n].literal)
      for n in (counted.operands if counted else ())
      if n in body and _is_number(body[n])
    ]
    return steps[0] if counted and counted.opcode == "add" and steps else 1

  def sizes(self, computation: str, names: tuple[str, ...]) -> float:
    """Total bytes of the results of some instructions of a computation."""
    return sum(self.computations[computation][name].bytes for name in names)


def _is_number(instruction):
  return instruction.opcode == "constant" and instruction.literal.isdigit()


def callees(instruction: Instruction) -> Iterator[str]:
  """Yields the names of the computations that an instruction calls."""
  yield from _CALLED.findall(instruction.attributes)
  for several in _BRANCHES.findall(instruction.attributes):
    yield from re.findall(r"%?([\w.-]+)", several)


def _parse_instruction(line):
  head = _LINE.match(line)
  kind, rest = _split_type(line[head.end() :])
  opcode, _, rest = rest.partition("(")
  end = _closing_parenthesis(rest)
  inside, literal = rest[:end], opcode in ("constant", "parameter")
  return Instruction(
    name=head[2],
    opcode=opcode,
    results=tuple(_parse_arrays(kind)),
    operands=() if literal else tuple(_operand_names(inside)),
    literal=inside if literal else "",
    attributes=rest[end + 1 :],
    root=bool(head[1]),
  )


def _operand_names(inside):
  """Names of the operands, each of which may have a shape or comment before it and a % or not."""
  depth, start, parts = 0, 0, []
  for match in re.finditer(r"[(){}\[\],]", inside):
    if match[0] == ",":
      if not depth:
        parts.append(inside[start : match.start()])
        start = match.end()
    else:
      depth += 1 if match[0] in "({[" else -1
  found = (re.search(r"%?([\w.-]+)\s*$", part) for part in (*parts, inside[start:]))
  return [name[1] for name in found if name]


def _split_type(text):
  """Splits a text into the type at its start and the rest."""
  end = _closing_parenthesis(text[1:]) + 2 if text.startswith("(") else text.find(" ")
  return text[:end], text[end:].lstrip()


def _closing_parenthesis(text):
  """Index of the parenthesis that closes one opened before the text."""
  depth = 1
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  return len(text)


def _parse_arrays(text):
  for kind, shape, layout in _ARRAY.findall(text):
    if kind in _BYTES or kind.startswith("f8"):
      space = re.search(r"S\((\d+)\)", layout)
      size = math.prod(int(n) for n in shape.split(",") if n) * _BYTES.get(kind, 1)
      yield Array(size, int(space[1]) if space else 0, f"{kind}[{shape}]")


def main_memory_traffic(program: Program) -> float:
  """Estimates the bytes that a program moves to and from main memory, from its instructions.

  Every instruction outside a fusion reads its operands and writes its results, except for those in
  on-chip memory (space 1 and up). A slice reads only the slice, and an in-place update writes only
  the update, so that a loop over stacked blocks reads one block per iteration.
  """
  return sum(
    program.times[name] * _bytes_moved(program, name, instruction)
    for name, instruction in _unfused_instructions(program)
  )


def core_cycles(program: Program) -> int | None:
  """Sums the compiler's estimates of the cycles that a TPU's core is busy; None if there are none.

  Each instruction that occupies the core has an estimate; that of a fusion covers all that is in
  it. The start and done of an asynchronous copy or collective have none. So time spent waiting for
  another chip or for main memory is left out, and work that overlaps with it is included.
  """
  found = [
    program.times[name] * int(cycles[1])
    for name, instruction in _unfused_instructions(program)
    if (cycles := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes))
  ]
  return sum(found) if found else None


def _unfused_instructions(program):
  """Yields (computation, instruction) for instructions that run on their own, outside fusions."""
  names = {program.entry}
  for computation in program.computations.values():
    for instruction in computation.values():
      if instruction.opcode in ("while", "conditional", "call", "async-start"):
        names.update(callees(instruction))
  for name in names:
    for instruction in program.computations[name].values():
      yield name, instruction


# Instructions that move no bytes, or that are counted in the computations that they call.
_NO_TRAFFIC = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
  "domain",
}


def _bytes_moved(program, name, instruction):
  if (
    instruction.opcode in _NO_TRAFFIC
    or instruction.opcode.endswith(("-done", "-update"))
    or (instruction.opcode == "async-start")
  ):
    return 0
  computation = program.computations[name]
  operands = [computation[n] for n in instruction.operands if n in computation]
  if instruction.opcode == "fusion":
    fused = next(callees(instruction))
    read = sum(
      min(_main_memory_bytes(operand), _bytes_read(program, fused, i))
      for i, operand in enumerate(operands)
    )
    return read + min(_main_memory_bytes(instruction), _bytes_written(program, fused))
  if instruction.opcode == "custom-call" and '"AllocateBuffer"' in instruction.attributes:
    return 0
  if instruction.opcode == "copy-start":  # (destination, source, context).
    return sum(a.bytes for a in instruction.results[:2] if a.space == 0)
  if instruction.opcode == "slice-start":  # (source, slice of it, context).
    source, part = instruction.results[:2]
    return sum(part.bytes for a in (source, part) if a.space == 0)
  read, written = _bytes_read_and_written(instruction, operands)
  if instruction.opcode in _RESULTS_INCLUDE_OPERANDS:
    written -= read
  if instruction.opcode == "custom-call" and re.search(r'"__cu(blas|dnn)', instruction.attributes):
    written -= _workspace_bytes(instruction)
  return read + written


# Their results include their operands, next to what they produce.
_RESULTS_INCLUDE_OPERANDS = {"all-gather-start", "reduce-scatter-start", "collective-permute-start"}


def _workspace_bytes(instruction):
  """Bytes of the workspace of a call to cuBLAS or cuDNN, which is its last result."""
  last = instruction.results[-1]
  return last.bytes if len(instruction.results) > 1 and last.text.startswith(("s8[", "u8[")) else 0


def _bytes_read_and_written(instruction, operands):
  """Bytes that an instruction other than a fusion reads and writes in main memory."""
  if instruction.opcode in ("dynamic-slice", "gather", "slice"):
    return (
      min(_main_memory_bytes(operands[0]), instruction.bytes),
      _main_memory_bytes(instruction),
    )
  if instruction.opcode in ("dynamic-update-slice", "scatter"):
    update = operands[1 if instruction.opcode == "dynamic-update-slice" else -1]
    return _main_memory_bytes(update), min(_main_memory_bytes(instruction), update.bytes)
  return sum(map(_main_memory_bytes, operands)), _main_memory_bytes(instruction)


def _main_memory_bytes(instruction):
  return sum(a.bytes for a in instruction.results if a.space == 0)


def _bytes_read(program, name, number):
  """Bytes of one of its parameters that a fusion reads."""
  computation = program.computations[name]
  parameter = next(
    (i for i in computation.values() if i.opcode == "parameter" and i.literal == str(number)),
    None,
  )
  return min(parameter.bytes, _bytes_used(program, computation, parameter)) if parameter else 0


def _bytes_used(program, computation, source):
  total = 0
  for user in computation.values():
    if source.name not in user.operands:
      continue
    if user.opcode in ("bitcast", "reshape"):
      total += _bytes_used(program, computation, user)
    elif user.opcode in ("dynamic-slice", "slice", "gather"):
      total += user.bytes
    elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == source.name:
      total += 0
    elif user.opcode == "fusion":
      fused = next(callees(user))
      total += sum(
        _bytes_read(program, fused, i) for i, n in enumerate(user.operands) if n == source.name
      )
    elif user.opcode != "tuple" and not _is_collective(user):
      total += source.bytes
  return total


def _is_collective(instruction):
  """Whether this is a collective, which is counted as communication."""
  return instruction.opcode.startswith(("all-", "reduce-scatter", "collective-", "ragged-"))


def _bytes_written(program, name):
  """Bytes that a fusion writes; for an in-place update, those of the update."""
  computation = program.computations[name]

  def of(instruction):
    if instruction.opcode == "tuple":
      return sum(of(computation[n]) for n in instruction.operands)
    if instruction.opcode in ("bitcast", "reshape"):
      return of(computation[instruction.operands[0]])
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
      update = computation[instruction.operands[1 if "slice" in instruction.opcode else -1]]
      return min(instruction.bytes, update.bytes)
    if instruction.opcode == "fusion":
      return min(instruction.bytes, _bytes_written(program, next(callees(instruction))))
    return (
      0 if instruction.opcode == "parameter" or _is_collective(instruction) else instruction.bytes
    )

  return of(next(i for i in computation.values() if i.root))
