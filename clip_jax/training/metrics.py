"""Metrics of a run, in metrics.jsonl, TensorBoard and Weights & Biases, and its console output."""

from collections.abc import Callable, Mapping
import json
import math
from pathlib import Path
import secrets
import sys
import textwrap
import time
from typing import TextIO

import jax
import jax.numpy as jnp

from clip_jax.cli.formatting import duration, number
from clip_jax.cli.progress import StatusLine
from clip_jax.errors import UserError
from clip_jax.files import write_atomically

_WIDTH = 100  # Columns at which lines of metrics wrap.
ERRORS = (
  "evaluation_errors"  # Entry of a line that names evaluators that failed, with their errors.
)

LAST = ("learning_rate", "skipped_steps")  # Metrics that are not averaged.


class WindowMeans:
  """Means of the metrics of some steps, accumulated on the device without waiting for it.

  Steps whose loss or gradient norm is not finite are left out: the train step skips them, and one
  of them would make the means of all others NaN. They are counted by `skipped_steps`. If every
  step is left out, the means are NaN. Metrics in `LAST` have the value of the last step.
  """

  def __init__(self) -> None:
    self._last: dict[str, jax.Array] = {}
    self._totals: tuple[dict[str, jax.Array], jax.Array] | None = None

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Adds the metrics of a step, float [] each, with `loss` and `grad_norm` among them."""
    self._last = {name: x for name, x in metrics.items() if name in LAST}
    others = {name: x for name, x in metrics.items() if name not in LAST}
    self._totals = _started(others) if self._totals is None else _added(self._totals, others)

  def fetch(self) -> dict[str, float]:
    """Waits for the last step, and returns the metrics as floats."""
    last, (sums, steps) = jax.device_get((self._last, self._totals))
    # In float64 on the host, so that the mean of a single step is its value.
    means = {name: float(x) / float(steps) if steps else math.nan for name, x in sums.items()}
    return means | {name: float(x) for name, x in last.items()}


@jax.jit
def _started(metrics):
  """Returns the metrics of a step, zeros if it was not finite; and the number of finite steps."""
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
  return (
    {name: jnp.where(finite, x, 0).astype(jnp.float32) for name, x in metrics.items()},
    finite.astype(jnp.int32),
  )


@jax.jit
def _added(totals, metrics):
  return jax.tree.map(jnp.add, totals, _started(metrics))


class MetricWriter:
  """Writes the metrics of a run, each exactly once even if the run is restarted.

  `workdir/metrics.jsonl` has one object per line, `{"step": 12, "train/loss": 3.2}`. A metric that
  is not finite is null there, because JSON has no NaN; TensorBoard and the console show its value.
  On the console, metrics of the training step update the progress line, in place on a terminal and
  every few seconds in a file; other metrics (`<evaluator>/...`) are printed on separate lines.
  The line of an evaluator that failed is `{"step": 12, "evaluation_errors": {"val": "..."}}`.
  """

  def __init__(
    self,
    workdir: Path | str,
    total_steps: int,
    start_step: int = 0,
    *,
    writes: bool = True,
    wandb: str | None = None,
    every_seconds: float = 10.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens the files, and drops metrics after `start_step`, because those steps will be rerun.

    Args:
      workdir: the run's folder; created if missing.
      total_steps: length of the whole run in steps.
      start_step: step that the run resumes from.
      writes: whether this process writes anything; only one process of a run should.
      wandb: Weights & Biases project to log to in addition.
      every_seconds: interval between progress lines if the console is not a terminal.
      stream: the console; standard output by default.
      clock: returns the time in seconds, to estimate the time left.

    Raises:
      UserError: the workdir cannot be written to, or `wandb` is set and not installed.
    """
    self._total, self._start, self._writes = total_steps, start_step, writes
    self._every, self._clock = every_seconds, clock
    self._console = StatusLine(stream or sys.stdout)
    self._first: tuple[int, float] | None = None  # Step and time of the first line.
    self._shown: float | None = None  # Time of the last line shown.
    self._file = self._tensorboard = self._wandb = None
    if not writes:
      return
    path = Path(workdir) / "metrics.jsonl"
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._wandb = _wandb_run(wandb, path.parent) if wandb else None
      _forget(path, start_step)
      self._file = path.open("a", encoding="utf-8")
    except OSError as error:
      raise UserError(
        f"The workdir {str(workdir)!r} cannot be written to: {error.strerror}. Choose another "
        "one with --workdir, or change its permissions."
      ) from error
    self._tensorboard = self._open_event_file(path, path.parent / "tensorboard")

  def _open_event_file(self, metrics, folder):
    """Opens TensorBoard's file, and writes what earlier ones lack of metrics.jsonl."""
    try:
      from clip_jax.training import event_file
    except ImportError:
      self.note(
        "TensorBoard logging is off because tensorboardX is missing: pip install tensorboardX."
      )
      return None
    lines = [
      (line.pop("step"), line)
      for line in map(json.loads, metrics.read_bytes().splitlines())
      if line.pop(ERRORS, None) is None
    ]
    shown = event_file.visible(folder)
    lost = [step for step, line in lines if any((step, name) not in shown for name in line)]
    # TensorBoard hides what interrupted processes wrote from this step on.
    purge = min([*lost, self._start + 1 if self._start else 0])
    file = event_file.EventFile(folder, purge)
    for step, line in lines:
      if step >= purge:
        file.scalars(step, {n: math.nan if x is None else x for n, x in line.items()})
    return file

  def log(self, step: int, metrics: Mapping[str, float], *, show: bool = True) -> None:
    """Logs metrics; each may be logged at most once per step.

    Args:
      step: number of steps made so far.
      metrics: values by name. `train/loss`, `train/images_per_second` and
        `train/data_wait_fraction` (of the time spent waiting for data) appear in the progress line.
      show: whether to print metrics of evaluators.
    """
    if not self._writes:
      return
    values = {name: float(value) for name, value in metrics.items()}
    line = {"step": int(step)} | {n: v if math.isfinite(v) else None for n, v in values.items()}
    self._write_line(line)
    if self._tensorboard:
      self._tensorboard.scalars(int(step), values)
    if self._wandb:
      self._wandb.log(values, step=int(step))
    others = {n: v for n, v in values.items() if not n.startswith("train/")}
    if others and show:
      self.note(_evaluation(step, others))
    if len(others) < len(values):
      self._progress(int(step), values)

  def log_error(self, step: int, name: str, problem: str) -> None:
    """Logs that the evaluator `name` failed with the error `problem`."""
    if not self._writes:
      return
    self._write_line({"step": int(step), ERRORS: {name: problem}})
    self.note(f"Evaluator {name} failed at step {step:,}: {problem}")

  def log_figure(self, step: int, name: str, png: bytes, size: tuple[int, int]) -> None:
    """Shows a figure of an evaluator, a PNG of `size` (width, height), in TensorBoard."""
    if self._tensorboard:
      self._tensorboard.image(step, name, png, size)

  def log_config(self, text: str) -> None:
    """Shows the config of the run, as JSON, in TensorBoard."""
    if self._tensorboard:
      self._tensorboard.text(self._start, "config", f"```json\n{text}\n```")

  def _write_line(self, line):
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()  # A killed run loses at most the line being written.

  def note(self, text: str) -> None:
    """Prints whole lines, above the progress line if there is one."""
    if not self._writes:
      return
    self._console.note(text)

  def close(self) -> None:
    """Ends the progress line and closes the files; `note` can still print lines."""
    self._console.end()
    for part in (self._file, self._tensorboard):
      if part:
        part.close()
    if self._wandb:
      self._wandb.finish()
    self._file = self._tensorboard = self._wandb = None

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _progress(self, step, values):
    now = self._clock()
    # Measure from the first line on, to exclude compilation, which happens before it.
    self._first = self._first or (step, now)
    line = progress_line(step, self._total, values, self._time_left(step, now))
    due = self._shown is None or step >= self._total or now - self._shown >= self._every
    if due or self._console.on_terminal:
      self._console.show(line, step / max(self._total, 1))
      self._shown = now

  def _time_left(self, step, now):
    first, then = self._first
    return (now - then) / (step - first) * (self._total - step) if step > first else None


def progress_line(
  step: int, total: int, values: Mapping[str, float], seconds_left: float | None
) -> str:
  """Formats the progress line; `seconds_left` is None if not known yet."""
  parts = [f"step {step:,}/{total:,}", f"{100 * step // max(total, 1)}%"]
  if "train/loss" in values:
    parts.append(f"loss {values['train/loss']:.3f}")
  if "train/images_per_second" in values:
    parts.append(f"images/s {number(values['train/images_per_second'])}")
  if "train/data_wait_fraction" in values:
    parts.append(f"data wait {100 * values['train/data_wait_fraction']:.0f}%")
  if seconds_left is not None and step < total:
    parts.append(f"time left {duration(seconds_left)}")
  return "  ".join(parts)


def _evaluation(step, values):
  """Formats the metrics of an evaluation, grouped by evaluator."""
  groups = {}
  for name, value in values.items():
    evaluator, _, metric = name.rpartition("/")
    groups.setdefault(evaluator, []).append(f"{metric or name} {number(value)}".replace(" ", "\0"))
  lines = []
  for evaluator, parts in groups.items():
    head = f"step {step:,}" + (f"  {evaluator}" if evaluator else "")
    lines.append(
      textwrap.fill(
        "  ".join(parts),
        _WIDTH,
        initial_indent=f"{head}  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
      )
    )
  return "\n".join(lines).replace("\0", " ")  # Keeps a name and its value on the same line.


def read_metrics(workdir: Path | str) -> dict[str, tuple[list[int], list[float]]]:
  """Reads the metrics of a run: (steps, values) by name, NaN where a value was not finite.

  Raises:
    UserError: there is no metrics.jsonl in `workdir`.
  """
  path = Path(workdir) / "metrics.jsonl"
  if not path.is_file():
    raise UserError(f"There is no {path}. Check the folder: every run creates this file.")
  found = {}
  for line in path.read_bytes().splitlines():
    if (step := _step(line)) is not None:  # A line that is still being written has none.
      for name, value in json.loads(line).items():
        if name not in ("step", ERRORS):
          steps, values = found.setdefault(name, ([], []))
          steps.append(step)
          values.append(math.nan if value is None else value)
  return found


def evaluation_metrics(workdir: Path | str, step: int) -> dict[str, float | None]:
  """Reads the metrics of evaluators at `step` from metrics.jsonl, None where not finite.

  Empty if there are none, or no metrics.jsonl.
  """
  path, found = Path(workdir) / "metrics.jsonl", {}
  for line in path.read_bytes().splitlines() if path.exists() else ():
    if _step(line) == step:
      found.update(json.loads(line))
  return {n: x for n, x in found.items() if n not in ("step", ERRORS) and n[:6] != "train/"}


def _forget(path, step):
  """Drops lines of `path` after `step` and incomplete ones; at step 0, drops all lines."""
  if not path.exists():
    return
  keep = [
    line
    for line in path.read_bytes().splitlines()
    if step > 0 and _step(line) is not None and _step(line) <= step
  ]
  write_atomically(path, b"".join(line + b"\n" for line in keep))


def _step(line):
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return None


def _wandb_run(project, workdir):
  try:
    import wandb
  except ImportError as error:
    raise UserError(
      f"The config sets the Weights & Biases project {project!r}, but wandb is not installed. "
      "Install it (pip install wandb), or remove the project from the config."
    ) from error
  identity = workdir / "wandb_id.txt"  # Stored so that a resumed run continues the same W&B run.
  if not identity.exists():
    write_atomically(identity, secrets.token_hex(4))
  return wandb.init(
    project=project,
    name=workdir.name,
    dir=str(workdir),
    id=identity.read_text().strip(),
    resume="allow",
  )
