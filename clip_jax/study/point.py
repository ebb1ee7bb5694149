"""One point of a grid, in a process of its own: trained or gone on with, and its row written."""

from collections.abc import Mapping
import fcntl
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import clip_jax
from clip_jax import loop
from clip_jax.compute import FLOPS
from clip_jax.errors import UserError
from clip_jax.study import grid as grid_lib
from clip_jax.study.budget import compute_of


def run_one(grid: str, name: str, out: Path, fingerprint: str) -> int:
  """Trains one run of a grid to its end and leaves `row.json` in its folder.

  Whoever comes second waits, so two processes never write to one folder; a run that is done by
  then is left as it is.

  Args:
    grid: where the grid is, as `grid.load` takes it.
    name: of the run.
    out: folder of the grid's results.
    fingerprint: of the config that was meant.

  Returns:
    Exit code, as of `loop.run`.

  Raises:
    UserError: the grid file says something else by now.
  """
  threading.Thread(target=_end_with_parent, daemon=True).start()
  loaded = grid_lib.load(grid)
  run = next((run for run in loaded.runs if run.name == name), None)
  if run is None or run.fingerprint != fingerprint:
    raise UserError(f"{grid} changed while it was running: {name} is not what it was. Start again.")
  folder = out / "runs" / run.folder
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (folder / "row.json").exists():
      return 0
    clock = Clock(folder)
    code = loop.run(run.config, folder)
    seconds = clock.stop()
    if code == 0:
      write(folder / "row.json", row_of(run, loaded.columns, folder, seconds))
    return code


def row_of(run: grid_lib.Run, columns: Mapping[str, str], folder: Path,
           seconds: float) -> dict[str, Any]:
  """The row of a finished run; `records.COLUMNS`, and what else its final evaluation measured."""
  import jax
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  last = [line for line in lines if "train/flops" in line][-1]
  final = {name: value for line in lines if line["step"] == last["step"]
           for name, value in line.items() if "/" in name and not name.startswith("train/")}
  missing = [metric for metric in columns.values() if metric not in final]
  if missing:
    raise UserError(f"The grid wants the metric {missing[0]!r} for a column, and the run's last "
                    f"evaluation has {', '.join(final) or 'none'}. Change the grid's columns.")
  compute, samples = compute_of(run.config), last["step"] * run.config.data.batch_size
  devices = jax.devices()
  return {
      "name": run.name, **run.factors, "dataset_size": round(samples / last["train/epoch"]),
      "samples_seen": samples, "epochs": round(last["train/epoch"], 4), "steps": last["step"],
      "seed": run.config.seed, "forward_gmacs": last["train/flops"] / samples / FLOPS / 1e9,
      "image_gmacs": compute.image / 1e9, "text_gmacs": compute.text / 1e9,
      "train_flops": last["train/flops"], "parameters": compute.parameters,
      **{column: _rounded(final[metric]) for column, metric in columns.items()},
      **{metric: _rounded(value) for metric, value in final.items()
         if metric not in columns.values()},
      "train/loss": last.get("train/loss"), "wall_seconds": round(seconds, 1),
      "fingerprint": run.fingerprint, "commit": commit(), "version": clip_jax.__version__,
      "device": f"{len(devices)} x {devices[0].device_kind}"}


class Clock:
  """Seconds that a run has taken, over all its starts; those of one that was killed among them."""

  def __init__(self, folder: Path):
    self._path, self._begun = folder / "clock.json", time.time()
    self._before = 0.0
    if self._path.exists():
      earlier = json.loads(self._path.read_text())
      self._before = earlier["seconds"]
      log = folder / "metrics.jsonl"
      if earlier["begun"] and log.exists():  # Killed: it lived at least until its last line.
        self._before += max(0.0, log.stat().st_mtime - earlier["begun"])
    write(self._path, {"seconds": self._before, "begun": self._begun})

  def stop(self) -> float:
    """Ends this start; the seconds of all."""
    seconds = self._before + time.time() - self._begun
    write(self._path, {"seconds": seconds, "begun": None})
    return seconds


def write(path: Path, value: Any) -> None:
  """JSON, all of it or none."""
  temporary = path.with_name(path.name + ".new")
  temporary.write_text(json.dumps(value))
  os.replace(temporary, path)


def commit() -> str:
  """The commit that the package is checked out at; empty where it is no checkout."""
  try:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], text=True, timeout=10,
                          cwd=Path(__file__).parent, capture_output=True, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ""


def _rounded(value):
  return None if value is None else round(value, 4)


def _end_with_parent():
  """Whoever started this holds the other end of its input; when that is gone, save and stop."""
  while os.read(sys.stdin.fileno(), 1):  # Not sys.stdin's: its lock outlives the interpreter.
    pass
  os.kill(os.getpid(), signal.SIGTERM)
