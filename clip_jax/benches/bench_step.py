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
from clip_jax.parallel.placement import batch_sharding, rows_of_devices, to_global
from clip_jax.training.setup import TrainSetup, compile_train_step, initial_state

TRACED = 3  # Number of steps under the profiler.
HOST_STEPS = 50  # Maximum number of steps that are timed on the host.


def bench_step(setup: TrainSetup, profile: str | None = None) -> dict[str, float]:
  """Measures the train step on one batch that is already on the devices.

  Args:
    setup: the built config.
    profile: folder to keep the trace in; also prints the most expensive instructions.
  """
  with jax.set_mesh(setup.mesh):
    batch = random_batch(setup)
    start = time.perf_counter()
    compiled = compile_train_step(setup)
    compile_seconds = time.perf_counter() - start

    def step(state):
      return compiled(state, batch)[0]

    seconds, cpu, state = time_per_call(step, initial_state(setup))
    ceiling = matmul_ceiling(setup.mesh, setup.dtypes["image"])
    dispatching, transferring, state = _host_seconds(compiled, state, batch, setup)
    shares = _shares(step, state, compiled.as_text(), profile)
  images = setup.data.batch_size
  flops = images * setup.compute.flops
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


def random_batch(setup: TrainSetup) -> dict[str, jax.Array]:
  """A batch of noise on the devices, with the shapes of the config's batches."""
  rng = np.random.default_rng(0)
  draw = lambda s: (
    rng.integers(0, 256, s.shape) if s.dtype == np.uint8 else rng.integers(1, 100, s.shape)
  ).astype(s.dtype)
  return to_global({name: draw(s) for name, s in setup.batch.items()}, batch_sharding(setup.mesh))


def _host_seconds(compiled, state, batch, setup):
  """Measures the CPU time of the training loop's thread per step; medians over some steps.

  Returns:
    Seconds to dispatch a step, seconds to put a batch on the devices, and the last state.
  """
  size = setup.data.batch_size
  rows = rows_of_devices(setup.mesh.local_devices, size, setup.mesh)
  held = {name: np.zeros((len(rows), *x.shape[1:]), x.dtype) for name, x in batch.items()}
  times = []
  start = time.perf_counter()
  while len(times) < HOST_STEPS and (not times or time.perf_counter() - start < machine.SECONDS):
    clock = [time.thread_time()]
    state, metrics = compiled(state, batch)
    clock.append(time.thread_time())
    put = to_global(held, batch_sharding(setup.mesh), rows=rows, batch_size=size)
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
