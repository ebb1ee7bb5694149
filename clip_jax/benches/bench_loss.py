"""Measures the losses, dense and in chunks of rows, from 1k to 64k rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import losses
from clip_jax.benches.machine import per_call

ROWS = tuple(1024 << k for k in range(7))
EMBED = 512
BLOCK = 1024
LONGEST = 10.0  # Maximum seconds per call; larger numbers of rows are compiled but not run.
MOST_MEMORY = 4e9  # Maximum bytes of temporaries of a call that is run on a CPU.

LOSSES: dict[str, Callable] = {
  "info_nce": lambda a, b, block: losses.info_nce(a, b, 50.0, chunk_size=block),
  "sigmoid_pairs": lambda a, b, block: losses.sigmoid_pairs(a, b, 10.0, -10.0, chunk_size=block),
  "nt_xent": lambda a, b, block: losses.nt_xent(a, b, 0.1, chunk_size=block),
}


def bench_loss() -> dict[str, dict[str, float]]:
  """Measures time and temporaries of the value and gradient of each loss, dense and in chunks.

  Returns:
    Numbers by name, for each loss and number of rows; None if the call would take too long or too
    much memory on this machine. Everything runs on one device.
  """
  numbers = {}
  for name, loss in LOSSES.items():
    slow = {"dense": False, "blocks": False}
    for B in ROWS:
      memory, seconds = {}, {}
      for form, block in (("dense", None), ("blocks", min(BLOCK, B))):
        memory[form], seconds[form] = _measure(loss, B, block, run=not slow[form])
        slow[form] = seconds[form] is None or 4 * seconds[form] > LONGEST
      numbers[f"{name}, {B:,} rows"] = {
        "memory, dense / blocks": memory["dense"] / memory["blocks"],
        "time, dense / blocks": (
          seconds["dense"] / seconds["blocks"] if None not in seconds.values() else None
        ),
        "dense, MB": memory["dense"] / 1e6,
        "blocks, MB": memory["blocks"] / 1e6,
        "dense, s": seconds["dense"],
        "blocks, s": seconds["blocks"],
      }
  return numbers


def _measure(loss, B, block, run):
  """Returns bytes of temporaries, and seconds per call, or None if it was not run."""

  def one(z):
    return jax.grad(lambda z: loss(*z, block))(z)

  shapes = (jax.ShapeDtypeStruct((B, EMBED), jnp.float32),) * 2
  compiled = jax.jit(one).lower(shapes).compile()
  memory = compiled.memory_analysis().temp_size_in_bytes
  if not run or (jax.default_backend() == "cpu" and memory > MOST_MEMORY):
    return memory, None
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, B, EMBED)).astype(np.float32)
  z /= np.linalg.norm(z, axis=-1, keepdims=True)
  return memory, per_call(compiled, tuple(map(jnp.asarray, z)), seconds=0.3)[0]
