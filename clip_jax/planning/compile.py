"""The real train step, compiled for chips that are not there."""

from collections.abc import Sequence
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies

from clip_jax.errors import UserError
from clip_jax.parts import Parts
from clip_jax.planning.chips import Topology
from clip_jax.planning.gpus import GPUS, target_config
from clip_jax.planning.hlo import Program

_ONE_DEVICE_A_CHIP = {"v4": "megacore", "v5p": "megacore"}  # Chips of two cores that work as one.
# The compiler tries Triton's products out before it takes one, which needs a GPU; without them, the
# products are cuBLAS's.
_UNTRIED: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step that was compiled.

  Attributes:
    arguments, temporaries, peak: bytes a chip: the train state and a batch; what the step needs
      beside; the most in use at once, as the compiler says it. The first two can add up to more.
    program: the program of one chip.
    seconds: that compiling took.
  """
  arguments: int
  temporaries: int
  peak: int
  program: Program
  seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A step that has no room: bytes a chip that it needs, and that a program can have."""
  needed: int
  there: int
  seconds: float


def can_compile(topology: Topology) -> bool:
  """Whether there is a compiler here: libtpu for TPUs, one of JAX's plugins for GPUs."""
  modules = ("libtpu",) if topology.is_tpu else ("jax_cuda12_plugin", "jax_cuda13_plugin")
  return any(importlib.util.find_spec(module) for module in modules)


def bytes_a_device(tree: Any) -> int:
  """Bytes that each device holds of a tree of shapes with shardings."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))


def devices(topology: Topology) -> Sequence:
  """Descriptions of the topology's chips, for a mesh to compile for.

  Raises:
    UserError: there is no such slice.
  """
  if not topology.is_tpu:
    return topologies.get_topology_desc(
        platform="cuda", topology_name=topology.name, topology=gpu_layout(topology),
        target_config=target_config(GPUS[topology.name], topology.chip)).devices
  # Several compilations at a time do no harm, and what libtpu asks of its machine is not there.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if topology.name in _ONE_DEVICE_A_CHIP:
    options["chip_config_name"] = _ONE_DEVICE_A_CHIP[topology.name]
  name = f"{topology.name}:{'x'.join(map(str, topology.shape))}"
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except Exception as e:  # Whatever kind of error this version of libtpu has for it.
    raise UserError(f"libtpu knows no slice {name}: {first_line(e)}. Sides that exist are in "
                    "Google's page on the generation, cloud.google.com/tpu/docs.") from e


def gpu_layout(topology: Topology) -> str:
  """Slices x hosts x GPUs of a host, as JAX writes it; every host of a layout has as many.

  So 20 GPUs are 5 hosts of 4 here. That decides which process a device belongs to and nothing that
  the plan says; where its devices lie is up to `Topology.place`.
  """
  n, most = topology.devices, topology.chip.host_chips
  gpus = n if n <= most else math.gcd(n, most)
  return f"1x{n // gpus}x{gpus}"


def compiled(parts: Parts, topology: Topology) -> Compiled | TooLarge:
  """The train step of `parts`, whose mesh is of `devices`, compiled for them.

  A compiler for TPUs refuses what has no room. One for GPUs does not, so its peak is compared with
  `Chip.room`.
  """
  begun = time.perf_counter()
  with jax.set_mesh(parts.mesh), _without_cache():
    lowered = parts.train_step.lower(parts.state, parts.batch)
    try:
      made = lowered.compile(None if topology.is_tpu else _UNTRIED)
    except jax.errors.JaxRuntimeError as e:
      sizes = too_large(str(e), bytes_a_device((parts.state, parts.batch)))
      if sizes is None:
        raise
      return TooLarge(*sizes, time.perf_counter() - begun)
  memory = made.memory_analysis()
  if not topology.is_tpu and memory.peak_memory_in_bytes > topology.chip.room:
    return TooLarge(memory.peak_memory_in_bytes, int(topology.chip.room),
                    time.perf_counter() - begun)
  return Compiled(memory.argument_size_in_bytes, memory.temp_size_in_bytes,
                  memory.peak_memory_in_bytes, Program(made.as_text()), time.perf_counter() - begun)


def too_large(message: str, arguments: int) -> tuple[int, int] | None:
  """(bytes needed, bytes there) in a compiler's refusal; None if it refused for another reason.

  Args:
    arguments: bytes a chip of what the program is given, which one form of the message leaves out.
  """
  used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
  temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM "
                          r"\(([\d.]+)([KMGT])\)", message)
  found = used or temporaries
  if "RESOURCE_EXHAUSTED" not in message or not found:
    return None
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  needed, there = (round(float(found[i]) * unit[found[i + 1]]) for i in (1, 3))
  return needed + (0 if used else arguments), there


@contextlib.contextmanager
def _without_cache():
  """A program out of the cache of compiled programs does not say what memory it needs."""
  before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)


def first_line(error: Exception) -> str:
  """Of its message, or its kind if it has none."""
  return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
