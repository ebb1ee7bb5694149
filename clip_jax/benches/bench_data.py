"""Measures the input pipeline of a config, and JPEG decoding at three sizes."""

import time

from clip_jax.benches import machine, pipeline_speed
from clip_jax.data.pipeline import Examples, batches
from clip_jax.training.setup import TrainSetup


def bench_data(setup: TrainSetup) -> dict[str, float]:
  """Compares the config's pipeline with a plain loop, and several ways to decode JPEGs."""
  data, seconds = setup.data, machine.SECONDS
  examples = Examples(data.source, data.views, seed=0)
  rates = pipeline_speed.measure_rates(
    {
      "pipeline": lambda counter: pipeline_speed.pipeline(
        examples, counter, data.threads, data.batch_size
      ),
      "plain loop": lambda counter: pipeline_speed.plain_loop(examples, counter, data.batch_size),
    },
    seconds,
  )
  stream = batches(examples, batch_size=data.batch_size, threads=data.threads, workers=data.workers)
  next(stream)
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    next(stream)
    count += data.batch_size
  took = time.perf_counter() - start
  growth = pipeline_speed.memory_growth(stream, warm=10, steps=50)
  return {
    "config: Grain's overhead over the plain loop, %": 100
    * (rates["plain loop"] / rates["pipeline"] - 1),
    "config: images/s": count / took,
    "config: images per CPU-second": rates["pipeline"],
    "config: plain loop, images per CPU-second": rates["plain loop"],
    "config: time to the first batch at step 10,000,000, s": pipeline_speed.start_seconds(
      data.source, data.views
    ),
    "config: memory growth over 50 batches, MB": growth / 1e6,
    **pipeline_speed.compare(seconds / 3),
  }
