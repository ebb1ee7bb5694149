"""Measures the train step of a config, as a whole and by part."""

from pathlib import Path
import resource
import tempfile
import time

import jax
import numpy as np

from clip_jax.benches import machine
from clip_jax.benches.machine import matmul_ceiling, time_per_call
from clip_jax.cli.formatting import table
from clip_jax.costs import profile_trace
from clip_jax.parallel import placement
from clip_jax.parallel.placement import rows_of_devices, rows_to_global
from clip_jax.training.setup import TrainSetup
from clip_jax.training.state import TrainState

TRACED = 3  # Number of steps under the profiler.
HOST_STEPS = 50  # Maximum number of steps that are timed on the host.


def bench_step(parts: TrainSetup, profile: str | None = None) -> dict[str, float]:
  """Measures the train step on one batch that is already on the devices.

  Args:
    parts: the parts of the run.
    profile: folder to keep the trace in; also prints the most expensive instructions.
  """
  with jax.set_mesh(parts.mesh):
    batch = random_batch(parts)
    start = time.perf_counter()
    compiled = parts.train_step.lower(parts.state, parts.batch).compile()
    compile_seconds = time.perf_counter() - start

    def step(state):
      return compiled(state, batch)[0]

    seconds, cpu, state = time_per_call(step, first_state(parts))
    ceiling = matmul_ceiling(parts.mesh, parts.dtypes["image"])
    dispatching, transferring, state = _host_seconds(compiled, state, batch, parts)
    shares = _shares(step, state, compiled.as_text(), profile)
  images = parts.data.batch_size
  flops = images * parts.compute.flops
  memory = compiled.memory_analysis()
  return {
    "share of the matrix-multiply ceiling": flops / seconds / ceiling,
    **{f"share of device time: {name.replace('_', ' ')}": share for name, share in shares.items()},
    "host CPU time to dispatch a step, ms": 1e3 * dispatching,
    "host CPU time to transfer a batch, ms": 1e3 * transferring,
    "images/s": images / seconds,
    "images per CPU-second": images / cpu,
    "step time, s": seconds,
    "TFLOP per step (6 x forward multiply-adds)": flops / 1e12,
    "matrix-multiply ceiling, TFLOP/s": ceiling / 1e12,
    "compile time, s": compile_seconds,
    "temporaries of the step, MB per device": memory.temp_size_in_bytes / 1e6,
    "train state and batch, MB per device": memory.argument_size_in_bytes / 1e6,
    "peak host memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
  }


def random_batch(parts: TrainSetup) -> dict[str, jax.Array]:
  """A batch of noise on the devices, with the shapes of the config's batches."""
  rng = np.random.default_rng(0)
  draw = lambda s: (
    rng.integers(0, 256, s.shape) if s.dtype == np.uint8 else rng.integers(1, 100, s.shape)
  ).astype(s.dtype)
  return placement.host_rows_to_global(
    {name: draw(s) for name, s in parts.batch.items()}, parts.mesh
  )


def first_state(parts: TrainSetup) -> TrainState:
  """The initial train state, sharded over the config's mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, parts.state)
  return jax.jit(parts.make, static_argnums=0, out_shardings=shardings)(0)


def _host_seconds(compiled, state, batch, parts):
  """Measures the CPU time of the training loop's thread per step; medians over some steps.

  Returns:
    Seconds to dispatch a step, seconds to put a batch on the devices, and the last state.
  """
  size = parts.data.batch_size
  rows = rows_of_devices(parts.mesh.local_devices, size, parts.mesh)
  held = {name: np.zeros((len(rows), *x.shape[1:]), x.dtype) for name, x in batch.items()}
  times = []
  start = time.perf_counter()
  while len(times) < HOST_STEPS and (not times or time.perf_counter() - start < machine.SECONDS):
    clock = [time.thread_time()]
    state, metrics = compiled(state, batch)
    clock.append(time.thread_time())
    put = rows_to_global(held, rows, size, parts.mesh)
    clock.append(time.thread_time())
    jax.block_until_ready((put, metrics))
    times.append(np.diff(clock))
  dispatching, transferring = np.median(times, axis=0)
  return float(dispatching), float(transferring), state


def _shares(step, state, text, profile):
  """Share of device time by part, from a trace of a few steps."""

  def steps():
    after = state
    for _ in range(TRACED):
      after = step(after)
    return after

  program = profile_trace.scoped_instructions(text)
  with tempfile.TemporaryDirectory() as scratch:
    trace = profile_trace.record_trace(steps, Path(profile or scratch))
    seconds = profile_trace.device_seconds(trace, program)
  if profile:
    print(
      table(
        [
          (f"{share:.1%}", name, scopes)
          for name, share, scopes in profile_trace.most_expensive(seconds, program)
        ],
        header=("time", "instruction", "scopes"),
      )
    )
    print(
      f"trace: {trace.parent}, for TensorBoard; it contains perfetto_trace.json.gz, for "
      "https://ui.perfetto.dev\n"
    )
  return profile_trace.shares_by_part(seconds, program)
