"""Compiles the real train step ahead of time for accelerators that are not attached."""

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

from clip_jax.costs.hlo import Program
from clip_jax.errors import UserError
from clip_jax.planning.chips import Topology
from clip_jax.planning.gpus import GPUS, target_config
from clip_jax.training.setup import TrainSetup, jit_train_step

_CHIP_CONFIG = {"v4": "megacore", "v5p": "megacore"}  # Two cores that act as one device.
# Autotuning of Triton's matrix products needs a GPU; without them, XLA uses cuBLAS.
_NO_AUTOTUNING: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step.

  Attributes:
    arguments: bytes per chip of the train state and a batch.
    temporaries: bytes per chip that the step needs in addition.
    peak: the most bytes per chip in use at once, according to the compiler. It can be less than
      the sum of the other two.
    program: the program of one chip.
    seconds: compile time.
  """

  arguments: int
  temporaries: int
  peak: int
  program: Program
  seconds: float


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A step that does not fit: bytes per chip that it needs, and that a program can use."""

  needed: int
  available: int
  seconds: float


def can_compile(topology: Topology) -> bool:
  """Whether a compiler is installed: libtpu for TPUs, one of JAX's CUDA plugins for GPUs."""
  modules = ("libtpu",) if topology.is_tpu else ("jax_cuda12_plugin", "jax_cuda13_plugin")
  return any(importlib.util.find_spec(module) for module in modules)


def bytes_per_device(tree: Any) -> int:
  """Bytes per device of a tree of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def topology_devices(topology: Topology) -> Sequence:
  """Returns descriptions of the chips of a topology, for use as the devices of a mesh.

  Raises:
    UserError: libtpu does not support such a slice.
  """
  if not topology.is_tpu:
    return topologies.get_topology_desc(
      platform="cuda",
      topology_name=topology.name,
      topology=gpu_layout(topology),
      target_config=target_config(GPUS[topology.name], topology.chip),
    ).devices
  # Allow several compilations at a time, and set what libtpu would ask a TPU host for.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if topology.name in _CHIP_CONFIG:
    options["chip_config_name"] = _CHIP_CONFIG[topology.name]
  name = f"{topology.name}:{'x'.join(map(str, topology.shape))}"
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except Exception as e:  # The type of the error depends on the version of libtpu.
    raise UserError(
      f"libtpu does not support the slice {name}: {first_line(e)}. Google's page on "
      "its generation lists those that exist: cloud.google.com/tpu/docs."
    ) from e


def gpu_layout(topology: Topology) -> str:
  """JAX's layout string, slices x hosts x GPUs per host; all hosts must have equally many GPUs.

  So 20 GPUs are laid out as 5 hosts of 4. The layout decides which process owns a device, and does
  not affect the plan: the location of devices comes from `Topology.location`.
  """
  n, most = topology.devices, topology.chip.chips_per_host
  gpus = n if n <= most else math.gcd(n, most)
  return f"1x{n // gpus}x{gpus}"


def compile_step(setup: TrainSetup, topology: Topology) -> Compiled | TooLarge:
  """Compiles the train step of `setup`, whose mesh must consist of `topology_devices(topology)`.

  The TPU compiler rejects a step that does not fit. The GPU compiler does not, so the peak is
  compared with `Chip.usable_memory`.
  """
  start = time.perf_counter()
  with jax.set_mesh(setup.mesh), _without_cache():
    lowered = jit_train_step(setup).lower(setup.state, setup.batch)
    try:
      compiled = lowered.compile(None if topology.is_tpu else _NO_AUTOTUNING)
    except jax.errors.JaxRuntimeError as e:
      sizes = program_too_large(str(e), bytes_per_device((setup.state, setup.batch)))
      if sizes is None:
        raise
      return TooLarge(*sizes, time.perf_counter() - start)
  memory = compiled.memory_analysis()
  if not topology.is_tpu and memory.peak_memory_in_bytes > topology.chip.usable_memory:
    return TooLarge(
      memory.peak_memory_in_bytes, int(topology.chip.usable_memory), time.perf_counter() - start
    )
  return Compiled(
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.peak_memory_in_bytes,
    Program(compiled.as_text()),
    time.perf_counter() - start,
  )


def program_too_large(message: str, arguments: int) -> tuple[int, int] | None:
  """Parses (bytes needed, bytes available) from a compiler error; None for any other error.

  Args:
    message: text of the error.
    arguments: bytes per chip of the program's arguments, which one form of the message leaves out.
  """
  used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
  temporaries = re.search(
    r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM "
    r"\(([\d.]+)([KMGT])\)",
    message,
  )
  found = used or temporaries
  if "RESOURCE_EXHAUSTED" not in message or not found:
    return None
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  needed, available = (round(float(found[i]) * unit[found[i + 1]]) for i in (1, 3))
  return needed + (0 if used else arguments), available


@contextlib.contextmanager
def _without_cache():
  """Disables the compilation cache: a cached program does not report its memory use."""
  before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)


def first_line(error: Exception) -> str:
  """The first line of an error's message, or its type if the message is empty."""
  return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
