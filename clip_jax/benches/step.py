"""The training step of a config, whole and by its parts."""

from pathlib import Path
import resource
import tempfile
import time

import jax
import numpy as np

from clip_jax import profiling, sharding
from clip_jax.benches.machine import matmul_ceiling, per_call
from clip_jax.parts import Parts
from clip_jax.report import table
from clip_jax.step import TrainState

TRACED = 3  # Steps under the profiler.


def bench_step(parts: Parts, profile: str | None = None) -> dict[str, float]:
  """The training step on one batch that lies on the device already.

  Args:
    profile: folder that the trace is left in; the instructions that take most are printed then.
  """
  with jax.set_mesh(parts.mesh):
    batch = random_batch(parts)
    begun = time.perf_counter()
    compiled = parts.train_step.lower(parts.state, parts.batch).compile()
    compile_seconds = time.perf_counter() - begun

    def step(state):
      return compiled(state, batch)[0]

    seconds, cpu, state = per_call(step, first_state(parts))
    ceiling = matmul_ceiling(parts.mesh, parts.dtypes["image"])
    shares = _shares(step, state, compiled.as_text(), profile)
  images = parts.data.batch_size
  flops = images * parts.compute.flops
  memory = compiled.memory_analysis()
  return {
      "share of the matrix-multiply ceiling": flops / seconds / ceiling,
      **{f"share of the device's time: {name.replace('_', ' ')}": share
         for name, share in shares.items()},
      "images/s": images / seconds,
      "images per CPU-second": images / cpu,
      "seconds a step": seconds,
      "TFLOP a step (6 x forward multiply-adds)": flops / 1e12,
      "ceiling, TFLOP/s": ceiling / 1e12,
      "compile seconds": compile_seconds,
      "temporaries of the step, MB a device": memory.temp_size_in_bytes / 1e6,
      "train state and batch, MB a device": memory.argument_size_in_bytes / 1e6,
      "peak memory of the process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
  }


def random_batch(parts: Parts) -> dict[str, jax.Array]:
  """A batch of noise in the shapes of the config's, on the devices."""
  rng = np.random.default_rng(0)
  draw = lambda s: (rng.integers(0, 256, s.shape) if s.dtype == np.uint8
                    else rng.integers(1, 100, s.shape)).astype(s.dtype)
  return sharding.to_device({name: draw(s) for name, s in parts.batch.items()}, parts.mesh)


def first_state(parts: Parts) -> TrainState:
  """The train state before the first step, where the config's mesh has it."""
  shardings = jax.tree.map(lambda x: x.sharding, parts.state)
  return jax.jit(parts.make, static_argnums=0, out_shardings=shardings)(0)


def _shares(step, state, text, profile):
  """Share of the device's time by part, from a trace of a few steps."""
  def steps():
    after = state
    for _ in range(TRACED):
      after = step(after)
    return after

  program = profiling.instructions(text)
  with tempfile.TemporaryDirectory() as scratch:
    trace = profiling.traced(steps, Path(profile or scratch))
    seconds = profiling.device_seconds(trace, program)
  if profile:
    print(table([(f"{share:.1%}", name, scopes)
                 for name, share, scopes in profiling.dearest(seconds, program)],
                header=("time", "instruction", "written in")))
    print(f"trace: {trace.parent}, for TensorBoard; perfetto_trace.json.gz in it for "
          "https://ui.perfetto.dev\n")
  return profiling.by_part(seconds, program)
