"""Measures the losses, dense and in chunks of rows, from 1k to 64k rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import losses
from clip_jax.benches.machine import time_per_call

ROWS = tuple(1024 << k for k in range(7))
EMBED_DIM = 512
CHUNK_SIZE = 1024
MAX_SECONDS = 10.0  # Maximum seconds per call; larger numbers of rows are compiled but not run.
MAX_MEMORY = 4e9  # Maximum bytes of temporaries of a call that is run on a CPU.

LOSSES: dict[str, Callable] = {
  "info_nce": lambda a, b, chunk_size: losses.info_nce(a, b, 50.0, chunk_size=chunk_size),
  "sigmoid_pairs": lambda a, b, chunk_size: losses.sigmoid_pairs(
    a, b, 10.0, -10.0, chunk_size=chunk_size
  ),
  "nt_xent": lambda a, b, chunk_size: losses.nt_xent(a, b, 0.1, chunk_size=chunk_size),
}


def bench_loss() -> dict[str, dict[str, float]]:
  """Measures time and temporaries of the value and gradient of each loss, dense and in chunks.

  Returns:
    Numbers by name, for each loss and number of rows; None if the call would take too long or too
    much memory on this machine. Everything runs on one device.
  """
  numbers = {}
  for name, loss in LOSSES.items():
    slow = {"dense": False, "chunked": False}
    for B in ROWS:
      memory, seconds = {}, {}
      for form, chunk_size in (("dense", None), ("chunked", min(CHUNK_SIZE, B))):
        memory[form], seconds[form] = _measure(loss, B, chunk_size, run=not slow[form])
        slow[form] = seconds[form] is None or 4 * seconds[form] > MAX_SECONDS
      numbers[f"{name}, {B:,} rows"] = {
        "memory ratio, dense / chunked": memory["dense"] / memory["chunked"],
        "time ratio, dense / chunked": (
          seconds["dense"] / seconds["chunked"] if None not in seconds.values() else None
        ),
        "dense memory, MB": memory["dense"] / 1e6,
        "chunked memory, MB": memory["chunked"] / 1e6,
        "dense time, s": seconds["dense"],
        "chunked time, s": seconds["chunked"],
      }
  return numbers


def _measure(loss, B, chunk_size, run):
  """Returns bytes of temporaries, and seconds per call, or None if it was not run."""

  def gradient(z):
    return jax.grad(lambda z: loss(*z, chunk_size))(z)

  shapes = (jax.ShapeDtypeStruct((B, EMBED_DIM), jnp.float32),) * 2
  compiled = jax.jit(gradient).lower(shapes).compile()
  memory = compiled.memory_analysis().temp_size_in_bytes
  if not run or (jax.default_backend() == "cpu" and memory > MAX_MEMORY):
    return memory, None
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, B, EMBED_DIM)).astype(np.float32)
  z /= np.linalg.norm(z, axis=-1, keepdims=True)
  return memory, time_per_call(compiled, tuple(map(jnp.asarray, z)), seconds=0.3)[0]
