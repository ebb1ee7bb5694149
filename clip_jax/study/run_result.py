"""Trains or resumes one run of a grid in its own process, and writes its result row."""

from collections.abc import Mapping
import fcntl
import json
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import Any

import clip_jax
from clip_jax.cli.version import commit
from clip_jax.costs.model_compute import FLOPS
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.study import grid as grid_lib
from clip_jax.study.budgets import compute_of
from clip_jax.training import loop as loop_lib


def run_one(grid: str, name: str, out: Path, fingerprint: str) -> int:
  """Trains one run of a grid to its end and writes `row.json` to its folder.

  A file lock makes a second process for the same run wait; it returns at once if the run is done
  by then.

  Args:
    grid: grid file and argument, as for `grid.load`.
    name: name of the run.
    out: folder of the grid's results.
    fingerprint: expected fingerprint of the run's config.

  Returns:
    Exit code of `loop.run`.

  Raises:
    UserError: the grid file has changed since the grid was started.
  """
  threading.Thread(target=_stop_with_parent, daemon=True).start()
  loaded = grid_lib.load(grid)
  run = next((run for run in loaded.runs if run.name == name), None)
  if run is None or run.fingerprint != fingerprint:
    raise UserError(
      f"{grid} changed while the grid was running: the config of {name} is not the "
      "same any more. Rerun the command."
    )
  folder = out / "runs" / run.folder
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (folder / "row.json").exists():
      return 0
    clock = Clock(folder)
    code = loop_lib.run(run.config, folder)
    seconds = clock.stop()
    if code == 0:
      row = result_row(run, loaded.columns, folder, seconds)
      write_atomically(folder / "row.json", json.dumps(row))
    return code


def result_row(
  run: grid_lib.Run, columns: Mapping[str, str], folder: Path, seconds: float
) -> dict[str, Any]:
  """Builds the row of a finished run: `runs_table.COLUMNS` and all other final metrics.

  Raises:
    UserError: the final evaluation lacks a metric that the grid names as a column.
  """
  import jax

  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  last = [line for line in lines if "train/flops" in line][-1]
  final = {
    name: value
    for line in lines
    if line["step"] == last["step"]
    for name, value in line.items()
    if "/" in name and not name.startswith("train/")
  }
  missing = [metric for metric in columns.values() if metric not in final]
  if missing:
    raise UserError(
      f"The grid's columns need the metric {missing[0]!r}, but the final evaluation "
      f"of the run has {', '.join(final) or 'none'}. Change the grid's columns."
    )
  compute, samples = compute_of(run.config), last["step"] * run.config.data.batch_size
  devices = jax.devices()
  return {
    "name": run.name,
    **run.factors,
    "dataset_size": round(samples / last["train/epoch"]),
    "samples_seen": samples,
    "epochs": round(last["train/epoch"], 4),
    "steps": last["step"],
    "seed": run.config.seed,
    "forward_gmacs": last["train/flops"] / samples / FLOPS / 1e9,
    "image_gmacs": compute.image / 1e9,
    "text_gmacs": compute.text / 1e9,
    "train_flops": last["train/flops"],
    "parameters": compute.parameters,
    **{column: _rounded(final[metric]) for column, metric in columns.items()},
    **{
      metric: _rounded(value) for metric, value in final.items() if metric not in columns.values()
    },
    "train/loss": last.get("train/loss"),
    "wall_seconds": round(seconds, 1),
    "fingerprint": run.fingerprint,
    "commit": commit(),
    "version": clip_jax.__version__,
    "device": f"{len(devices)} x {devices[0].device_kind}",
  }


class Clock:
  """Wall time of a run in seconds, summed over its restarts, including those that were killed."""

  def __init__(self, folder: Path):
    self._path, self._begun = folder / "clock.json", time.time()
    self._before = 0.0
    if self._path.exists():
      self._before, begun = _clock(self._path)
      log = folder / "metrics.jsonl"
      if begun and log.exists():  # Killed: count the time until its last metrics.
        self._before += max(0.0, log.stat().st_mtime - begun)
    self._write(self._before, self._begun)

  def stop(self) -> float:
    """Stops the clock and returns the total in seconds."""
    seconds = self._before + time.time() - self._begun
    self._write(seconds, None)
    return seconds

  def _write(self, seconds, begun):
    write_atomically(self._path, json.dumps({"seconds": seconds, "begun": begun}))


def _clock(path):
  """The seconds before the last start and its time, None if it was not killed."""
  try:
    found = json.loads(path.read_text("utf-8"))
    seconds, begun = float(found["seconds"]), found["begun"]
    return seconds, None if begun is None else float(begun)
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path} is damaged: {type(error).__name__}: {error}. Remove it to count the time of the run "
      "from now on."
    ) from error


def _rounded(value):
  return None if value is None else round(value, 4)


def _stop_with_parent():
  """Sends this process SIGTERM, to save and stop, once its parent has exited.

  The parent holds the other end of the pipe to stdin, which is closed when it exits.
  """
  # Not sys.stdin.read(): a daemon thread blocked in it holds a lock that interpreter exit needs.
  while os.read(sys.stdin.fileno(), 1):
    pass
  os.kill(os.getpid(), signal.SIGTERM)
