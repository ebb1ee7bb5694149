"""Measures checkpoints: the stall of the step that saves one, and the time to save and restore."""

from pathlib import Path
import tempfile
import time

import jax

from clip_jax.benches.bench_step import random_batch
from clip_jax.benches.machine import time_per_call
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.setup import TrainSetup, compile_train_step, initial_state


def bench_checkpoint(setup: TrainSetup) -> dict[str, float]:
  """Measures a save in the background of training, and a restore, in the temporary folder."""
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(setup.mesh):
    batch, train_step = random_batch(setup), compile_train_step(setup)
    seconds, _, state = time_per_call(
      lambda state: train_step(state, batch)[0], initial_state(setup)
    )
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    checkpoints.save(0, state, setup.config)  # Warm-up: imports and first-time setup.
    checkpoints.wait()
    start = time.perf_counter()
    checkpoints.save(1, state, setup.config)
    stall = time.perf_counter() - start
    state = jax.block_until_ready(train_step(state, batch)[0])
    during = time.perf_counter() - start - stall
    checkpoints.wait()
    saved = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(setup.state, 1))
    restored = time.perf_counter() - start
    size = sum(
      path.stat().st_size for path in (checkpoints.folder / "1").rglob("*") if path.is_file()
    )
    checkpoints.close()
  return {
    "save stall, in steps": stall / seconds,
    "step during the save, in steps": during / seconds,
    "save stall, s": stall,
    "time until saved, s": saved,
    "restore time, s": restored,
    "size on disk, MB": size / 1e6,
    "step time, s": seconds,
  }
