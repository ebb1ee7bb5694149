"""Trains the missing runs of a grid, several at once, and resumes those that were interrupted."""

from collections.abc import Sequence
import functools
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from ml_collections.config_dict import ConfigDict

from clip_jax.cli.formatting import duration, number, table
from clip_jax.cli.progress import StatusLine
from clip_jax.config import build, from_json, modules, to_json
from clip_jax.costs.model_compute import ModelCompute
from clip_jax.errors import UserError
from clip_jax.study import budgets, runs_table
from clip_jax.study.grid import Grid, Run

PREEMPTED = 75  # Exit code: saved after SIGTERM; rerun to resume.
USER_ERROR = 2  # Exit code: a mistake in the command or config; retrying would not help.
EVALUATION_FAILED = 3  # Exit code: trained and saved, but an evaluator failed; rerun to evaluate.
PROGRESS_INTERVAL = 30.0  # Seconds between progress lines.


class Runner:
  """Trains the runs of a grid that are not done, each in its own process.

  A run is done when its folder contains a row.json. There is no other state, so rerunning the
  command resumes the grid after any kill, and several machines can share the output folder, each
  training its part of the grid.
  """

  def __init__(
    self,
    where: str,
    grid: Grid,
    out: Path,
    *,
    jobs: int,
    retries: int = 2,
    part: tuple[int, int] = (0, 1),
  ):
    """Prepares the runs without starting any.

    Args:
      where: grid file and argument that the processes load.
      grid: the grid loaded from it.
      out: folder of the results.
      jobs: number of concurrent runs, which share the GPUs, or else the CPU cores.
      retries: how often a failed run is started again; preemptions do not count.
      part: (i, n) selects every n-th run starting at the i-th.

    Raises:
      UserError: `jobs` or `retries` is out of range.
    """
    if jobs < 1 or retries < 0:
      raise UserError(f"--jobs={jobs} and --retries={retries} must be at least 1 and 0.")
    self.where, self.out, self.retries = where, out, retries
    self.grid, self.runs = grid, list(grid.runs)[part[0] :: part[1]]
    self.slots = divide_machine(jobs)
    self.active: dict[int, tuple[Run, subprocess.Popen]] = {}  # Slot -> run and its process.
    self.failures: dict[str, list[str]] = {}  # Name of the run -> end of its log at each failure.
    self.trained: set[str] = set()  # Names of runs that lack an evaluation only.
    self.stopping: int | None = None  # The signal that asked to stop.
    self.console = StatusLine(sys.stdout)

  def run(self) -> int:
    """Trains all runs that are not done.

    Returns:
      Exit code: 0 if all runs are done, 1 if some failed, `PREEMPTED` after SIGTERM.

    Raises:
      KeyboardInterrupt: after Ctrl-C, once all runs have saved.
    """
    before = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
      return self._run()
    finally:
      for process in (process for _, process in self.active.values()):
        process.stdin.close()
        process.wait()
      for number_, handler in before.items():
        signal.signal(number_, handler)

  def _run(self):
    waiting = [run for run in self.runs if not is_done(self.out, run)]
    self.started, self.total = time.monotonic(), len(self.runs)
    self.total_flops = {run.name: flops(run.config) for run in self.runs}
    self.flops_at_start = self._flops_done()
    self._print(
      f"{len(self.runs)} runs, {self.total - len(waiting)} of them done; up to "
      f"{len(self.slots)} at once, writing to {self.out}"
    )
    shown = 0.0
    while (waiting or self.active) and not self.stopping:
      for slot in range(len(self.slots)):
        if waiting and slot not in self.active:
          run = waiting.pop(0)
          self.active[slot] = (run, self._start(run, slot))
      time.sleep(0.2)
      for slot, (run, process) in list(self.active.items()):
        if process.poll() is not None:
          del self.active[slot]
          process.stdin.close()
          if self._should_restart(run, process.returncode):
            waiting.insert(0, run)
          shown = 0.0
      if time.monotonic() - shown > PROGRESS_INTERVAL:
        collect_results(self.out, self.grid)
        self._progress()
        shown = time.monotonic()
    self.console.end()
    collect_results(self.out, self.grid)
    if self.stopping == signal.SIGINT:
      raise KeyboardInterrupt
    if self.stopping:
      self._print("Stopped; rerun the command to resume.")
      return PREEMPTED
    for name, tail in self.failures.items():
      if tail:
        self._print(f"\n{name} failed {len(tail)} times; end of its log:\n{tail[-1]}")
    failed = [run.name for run in self.runs if not is_done(self.out, run)]
    trained = [name for name in failed if name in self.trained]
    others = [name for name in failed if name not in self.trained]
    self._print(
      f"{self.total - len(failed)} of {self.total} runs are done; results are in "
      f"{self.out / 'runs.csv'}"
      + (f"; failed: {', '.join(others)}" if others else "")
      + (
        f"; trained, but without all evaluations: {', '.join(trained)}. Rerun the command to "
        "evaluate them again"
        if trained
        else ""
      )
    )
    return 1 if failed else 0

  def _start(self, run, slot):
    """Starts a process that trains one run on the slot's GPUs or cores."""
    folder = self.out / "runs" / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    cores, environment = self.slots[slot]
    all_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
      os.sched_setaffinity(0, cores)  # The child process inherits it.
    try:
      with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
          [
            sys.executable,
            "-m",
            "clip_jax.study",
            "one",
            f"--grid={self.where}",
            f"--out={self.out}",
            f"--name={run.name}",
            f"--fingerprint={run.fingerprint}",
          ],
          stdin=subprocess.PIPE,
          stdout=log,
          stderr=subprocess.STDOUT,
          env={**os.environ, **environment},
          start_new_session=True,
        )
    finally:
      if cores:
        os.sched_setaffinity(0, all_cores)

  def _should_restart(self, run, code):
    """Reports a run whose process has ended, and returns whether to start it again."""
    folder = self.out / "runs" / run.folder
    if is_done(self.out, run):
      self._print(f"done    {run.name}")
      return False
    if code == PREEMPTED:
      return not self.stopping
    tail = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-12:])
    attempts = self.failures.setdefault(run.name, [])
    attempts.append(tail)
    again = code != USER_ERROR and len(attempts) <= self.retries
    if code == EVALUATION_FAILED:
      self.trained.add(run.name)
    self._print(
      (
        f"trained {run.name}, but an evaluator failed"
        if code == EVALUATION_FAILED
        else f"failed  {run.name} (exit code {code})"
      )
      + ("; retrying" if again else f"; see {folder / 'log.txt'}")
    )
    return again

  def _flops_done(self):
    """FLOPs done so far, by name of the run."""
    return {
      run.name: self.total_flops[run.name]
      if is_done(self.out, run)
      else min(self.total_flops[run.name], _flops_so_far(self.out / "runs" / run.folder))
      for run in self.runs
    }

  def _progress(self):
    flops_done = self._flops_done()
    finished = sum(is_done(self.out, run) for run in self.runs)
    share = sum(flops_done.values()) / max(1.0, sum(self.total_flops.values()))
    done_since_start = sum(flops_done.values()) - sum(self.flops_at_start.values())
    left = sum(self.total_flops.values()) - sum(flops_done.values())
    running = ", ".join(
      f"{run.name} {100 * flops_done[run.name] / self.total_flops[run.name]:.0f}%"
      for run, _ in self.active.values()
    )
    seconds = (
      (time.monotonic() - self.started) * left / done_since_start if done_since_start > 0 else None
    )
    line = (
      f"runs {finished}/{self.total}  compute {100 * share:.0f}%"
      + (f"  time left {duration(seconds)}" if seconds and left else "")
      + (f"  now {running}" if running else "")
    )
    self.console.show(line, share)

  def _stop(self, number, _):
    self.stopping = number

  def _print(self, line):
    self.console.note(line)


def divide_machine(jobs: int) -> list[tuple[set[int] | None, dict[str, str]]]:
  """Divides the machine's GPUs, or without any its CPU cores, among concurrent runs.

  Args:
    jobs: number of concurrent runs; a single one gets the whole machine.

  Returns:
    For each run, its cores (None for all) and its environment variables.

  Raises:
    UserError: there are more runs than GPUs.
  """
  if jobs == 1:
    return [(None, {})]
  devices = gpus()
  if devices:
    if jobs > len(devices):
      raise UserError(
        f"--jobs={jobs} is more than the {len(devices)} GPUs available: "
        f"{', '.join(devices)}. Set --jobs to {len(devices)} or less."
      )
    return [(None, {"CUDA_VISIBLE_DEVICES": ",".join(devices[i::jobs])}) for i in range(jobs)]
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  return [(set(cores[i % len(cores) :: jobs]) or None if cores else None, {}) for i in range(jobs)]


def gpus() -> list[str]:
  """Names of the visible GPUs, from CUDA_VISIBLE_DEVICES or else nvidia-smi."""
  if "CUDA_VISIBLE_DEVICES" in os.environ:
    return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
  try:
    listed = subprocess.run(
      ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return []
  return listed.split()


def is_done(out: Path, run: Run) -> bool:
  """Whether a run has written its row."""
  return (out / "runs" / run.folder / "row.json").exists()


def collect_results(out: Path, grid: Grid) -> list[dict]:
  """Writes runs.csv from the rows of all finished runs, except those with an outdated config.

  Runs in the folder that are not in the grid are kept.

  Returns:
    The rows written.

  Raises:
    UserError: a row.json is damaged.
  """
  now = {run.name: run.fingerprint for run in grid.runs}
  rows = [_row(path) for path in sorted((out / "runs").glob("*/row.json"))]
  rows = [row for row in rows if now.get(row["name"], row["fingerprint"]) == row["fingerprint"]]
  if rows:
    runs_table.write_rows(out / "runs.csv", rows)
  return rows


def _row(path):
  """The row of a finished run."""
  try:
    row = json.loads(path.read_text("utf-8"))
    if not isinstance(row, dict) or not {"name", "fingerprint"} <= row.keys():
      raise ValueError("it is not an object with a name and a fingerprint")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{path} is damaged: {error}. Remove it and rerun the command, which writes it again "
      "from the trained run."
    ) from error
  return row


def samples_of(config: ConfigDict) -> int:
  """Number of examples that a run sees; reads the data only if the length is set in epochs."""
  from clip_jax.data.subset import count

  train, size = config.train, config.data.batch_size
  if train.steps is not None:
    return train.steps * size
  if train.samples is not None:
    samples = count(train.samples, 0)
  else:
    samples = train.epochs * len(build(config.data).source)
  return -int(-samples // size) * size


def flops(config: ConfigDict) -> float:
  """Training FLOPs of a whole run."""
  return _cost(config).flops * samples_of(config)


def format_plan(
  runs: Sequence[Run], out: Path | None, *, accelerator: str, utilisation: float
) -> str:
  """Formats a table of the runs with their cost and state, and the total that remains.

  Args:
    runs: the runs.
    out: folder of the results, whose runs.csv gives the measured speed; None before any run.
    accelerator: a name in `accelerators.PEAKS`; its hours are used without a measured speed.
    utilisation: fraction of its peak that training reaches.
  """
  flops_per_hour = budgets.flops_per_hour(accelerator, utilisation)
  source = f"one {accelerator} at {utilisation:.0%} of its peak"
  if out and (out / "runs.csv").exists():
    rows = runs_table.read_rows(out / "runs.csv")
    flops_per_hour = (
      3600
      * sum(float(r["train_flops"]) for r in rows)
      / sum(float(r["wall_seconds"]) for r in rows)
    )
    source = f"at the measured speed of the {len(rows)} runs in {out}, one at a time"
  lines, left = [], 0.0
  for run in runs:
    samples, cost = samples_of(run.config), _cost(run.config)
    finished = out is not None and is_done(out, run)
    left += 0 if finished else cost.flops * samples
    lines.append(
      (
        run.name,
        f"{samples:,}",
        number(cost.image / 1e9),
        number(cost.text / 1e9),
        f"{cost.flops * samples:.2e}",
        number(cost.flops * samples / flops_per_hour),
        "done" if finished else "missing",
      )
    )
  missing = sum(line[-1] == "missing" for line in lines)
  return (
    table(lines, ("run", "samples", "image G", "text G", "FLOP", "hours", "state"))
    + f"\n\nG: 1e9 forward multiply-adds per example. Hours: {source}.\n{len(lines)} runs, "
    f"{missing} missing: {left:.2e} FLOP, {number(left / flops_per_hour)} hours."
  )


def _cost(config: ConfigDict) -> ModelCompute:
  """`compute_of`, cached by model, objective, image views and batch size."""
  counted = ConfigDict(
    {
      "model": config.model,
      "objective": config.objective,
      "data": {"batch_size": config.data.batch_size, "views": {"images": config.data.views.images}},
    }
  )
  # The grid file is the user's own, and so are the modules that it names.
  return _compute_of_json(to_json(counted), modules(counted))


@functools.cache
def _compute_of_json(text: str, trust: tuple[str, ...]) -> ModelCompute:
  return budgets.compute_of(from_json(text, trust=trust))


def _flops_so_far(folder):
  """FLOPs done by a run, from the last line of metrics.jsonl that reports them; 0 if none does."""
  try:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
  except OSError:
    return 0.0
  for line in reversed(lines):
    try:
      value = json.loads(line).get("train/flops")
    except ValueError:
      continue
    if value:
      return value
  return 0.0
