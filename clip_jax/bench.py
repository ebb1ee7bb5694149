"""Measures: python -m clip_jax.bench step|data [--config=FILE] [--json=FILE]."""

import json
import os
import platform
import resource
import time

from clip_jax import cli

HELP = """Measures how fast a config trains here, and how near that is to what the machine can do.

  python -m clip_jax.bench step [--config=FILE] [--json=FILE] [--config.a.b=value ...]
  python -m clip_jax.bench data [--config=FILE] [--json=FILE] [--config.a.b=value ...]

  step   images/s of the training step alone, its share of the matrix-multiply ceiling measured in
         the same run, compile time, memory
  data   images/s of the config's pipeline alone, beside a plain loop over the same operations; then
         of JPEGs of three sizes, beside Pillow alone, with the difference in pixels

  --config=FILE   default configs/quickstart.py
  --json=FILE     writes the numbers there as well
"""
SECONDS = 10.0  # Measured for each number.


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.errors import UserError
  from clip_jax.flags import parse
  benches = {"step": bench_step, "data": bench_data}
  if not arguments or arguments[0].startswith("-"):
    arguments = ["", *arguments]
  what, *rest = arguments
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=configs/quickstart.py", *rest]
  flags = parse(rest, HELP, config=True, strings=("json",))
  if what not in benches:
    raise UserError(f"Measure what? {what!r} is none of {', '.join(benches)}, as in "
                    "python -m clip_jax.bench step.")
  from clip_jax.parts import prepare
  from clip_jax.report import table
  numbers = benches[what](prepare(flags.config))
  print(f"machine: {machine()}")
  print(table(numbers.items(), header=(f"bench {what}", "")))
  if flags.json:
    with open(flags.json, "w") as f:
      json.dump({"machine": machine(), **numbers}, f, indent=2)
  return 0


def machine() -> str:
  """This machine and the versions that matter, in one line."""
  import jax
  devices = jax.devices()
  return (f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores "
          f"({platform.machine()}), jax {jax.__version__}, Python {platform.python_version()}")


def bench_step(parts) -> dict[str, float]:
  """The training step on one batch that lies on the device already."""
  import jax
  import numpy as np
  from clip_jax import sharding
  rng = np.random.default_rng(0)
  draw = lambda s: (rng.integers(0, 256, s.shape) if s.dtype == np.uint8
                    else rng.integers(1, 100, s.shape)).astype(s.dtype)
  with jax.set_mesh(parts.mesh):
    batch = sharding.to_device({name: draw(s) for name, s in parts.batch.items()}, parts.mesh)
    begun = time.perf_counter()
    compiled = parts.train_step.lower(parts.state, parts.batch).compile()
    compile_seconds = time.perf_counter() - begun
    shardings = jax.tree.map(lambda x: x.sharding, parts.state)
    state = jax.jit(parts.make, static_argnums=0, out_shardings=shardings)(0)

    def step(state):
      return compiled(state, batch)[0]

    seconds, cpu, state = per_call(step, state)
    ceiling = matmul_ceiling(parts.mesh, parts.learner.model.image.dtype)
  images = parts.data.batch_size
  flops = parts.compute.flops * images
  memory = compiled.memory_analysis()
  return {
      "share of the matrix-multiply ceiling": flops / seconds / ceiling,
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


def per_call(f, x):
  """Seconds and CPU-seconds of one call of `f`, and the last result; f's result is its next input.

  The first two calls are left out; each one is waited for.
  """
  import jax
  for _ in range(2):
    x = jax.block_until_ready(f(x))
  calls, begun, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - begun < SECONDS:
    x = jax.block_until_ready(f(x))
    calls += 1
  return (time.perf_counter() - begun) / calls, (time.process_time() - cpu) / calls, x


def matmul_ceiling(mesh, dtype: str) -> float:
  """FLOP/s of a product of large matrices on all devices: the most that a model could reach."""
  import jax
  import jax.numpy as jnp
  from clip_jax.sharding import replicated, rows
  n = 1024 if jax.default_backend() == "cpu" else 8192
  a = jax.device_put(jnp.ones((mesh.size * n, n), dtype), rows(mesh))
  b = jax.device_put(jnp.full((n, n), 1 / n, dtype), replicated(mesh))
  product = jax.jit(lambda a, b: a @ b)
  return 2 * mesh.size * n**3 / per_call(lambda a: product(a, b), a)[0]


def bench_data(parts) -> dict[str, float]:
  """The config's pipeline beside a plain loop; then JPEGs of three sizes, several ways."""
  from clip_jax.data import speed
  from clip_jax.data.pipeline import Examples, batches
  data = parts.data
  examples = Examples(data.source, data.views, seed=0)
  rates = speed.rate_each({
      "pipeline": lambda made: speed.pipeline(examples, made, data.threads, data.batch_size),
      "plain loop": lambda made: speed.plain(examples, made, data.batch_size)}, SECONDS)
  stream = batches(examples, batch_size=data.batch_size, threads=data.threads, workers=data.workers)
  next(stream)
  count, begun = 0, time.perf_counter()
  while time.perf_counter() - begun < SECONDS:
    next(stream)
    count += data.batch_size
  seconds = time.perf_counter() - begun
  growth = speed.memory_growth(stream, warm=10, steps=50)
  return {
      "config: images/s": count / seconds,
      "config: images per CPU-second": rates["pipeline"],
      "config: plain loop, images per CPU-second": rates["plain loop"],
      "config: Grain's overhead over the plain loop, %": 100 * (
          rates["plain loop"] / rates["pipeline"] - 1),
      "config: seconds to the first batch at step 10,000,000": speed.start_seconds(
          data.source, data.views),
      "config: growth of the memory over 50 batches, MB": growth / 1e6,
      **speed.compare(SECONDS / 3),
  }


if __name__ == "__main__":
  cli.command(main)
