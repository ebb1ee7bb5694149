"""Measures the input pipeline of a config, and JPEG decoding at three sizes."""

import time

from clip_jax.benches import machine, pipeline_speed
from clip_jax.data.pipeline import Examples, batches
from clip_jax.training.setup import TrainSetup


def bench_data(parts: TrainSetup) -> dict[str, float]:
  """Compares the config's pipeline with a plain loop, and several ways to decode JPEGs."""
  data, seconds = parts.data, machine.SECONDS
  examples = Examples(data.source, data.views, seed=0)
  rates = pipeline_speed.rate_each(
    {
      "pipeline": lambda made: pipeline_speed.pipeline(
        examples, made, data.threads, data.batch_size
      ),
      "plain loop": lambda made: pipeline_speed.plain(examples, made, data.batch_size),
    },
    seconds,
  )
  stream = batches(examples, batch_size=data.batch_size, threads=data.threads, workers=data.workers)
  next(stream)
  count, begun = 0, time.perf_counter()
  while time.perf_counter() - begun < seconds:
    next(stream)
    count += data.batch_size
  took = time.perf_counter() - begun
  growth = pipeline_speed.memory_growth(stream, warm=10, steps=50)
  return {
    "config: Grain's overhead over the plain loop, %": 100
    * (rates["plain loop"] / rates["pipeline"] - 1),
    "config: images/s": count / took,
    "config: images per CPU-second": rates["pipeline"],
    "config: plain loop, images per CPU-second": rates["plain loop"],
    "config: seconds to the first batch at step 10,000,000": pipeline_speed.start_seconds(
      data.source, data.views
    ),
    "config: growth of the memory over 50 batches, MB": growth / 1e6,
    **pipeline_speed.compare(seconds / 3),
  }
