"""Describes and times the machine that a benchmark runs on."""

from collections.abc import Callable
import os
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.parallel.placement import batch_sharding, replicated_sharding

SECONDS = 10.0  # Duration of each measurement.


def machine() -> str:
  """Formats the hardware and the relevant versions in one line."""
  devices = jax.devices()
  return (
    f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores "
    f"({platform.machine()}), jax {jax.__version__}, Python {platform.python_version()}"
  )


def time_per_call(
  f: Callable[[Any], Any], x: Any, seconds: float | None = None
) -> tuple[float, float, Any]:
  """Times a function that takes its own result as input.

  Two warm-up calls are not timed. Every call is waited for.

  Args:
    f: the function.
    x: its first input.
    seconds: how long to measure; `SECONDS` by default.

  Returns:
    Seconds and CPU-seconds per call, and the last result.
  """
  for _ in range(2):
    x = jax.block_until_ready(f(x))
  calls, start, cpu = 0, time.perf_counter(), time.process_time()
  while calls == 0 or time.perf_counter() - start < (seconds or SECONDS):
    x = jax.block_until_ready(f(x))
    calls += 1
  return (time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls, x


def matmul_ceiling(mesh: Mesh, dtype: str) -> float:
  """FLOP/s of large matrix products on all devices, the practical maximum for any model."""
  n = 1024 if jax.default_backend() == "cpu" else 8192
  a = jax.device_put(jnp.ones((mesh.size * n, n), dtype), batch_sharding(mesh))
  b = jax.device_put(jnp.full((n, n), 1 / n, dtype), replicated_sharding(mesh))
  product = jax.jit(lambda a, b: a @ b)
  return 2 * mesh.size * n**3 / time_per_call(lambda a: product(a, b), a)[0]
