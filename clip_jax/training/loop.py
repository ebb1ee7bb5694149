"""The training loop: steps, logging, evaluation and checkpoints."""

from collections.abc import Callable, Iterable
import contextlib
import json
import math
from pathlib import Path
import signal
import time
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict

from clip_jax import config as config_lib
from clip_jax.cli.formatting import evaluations as evaluations_table
from clip_jax.data.selection import base_indices_of
from clip_jax.errors import UserError
from clip_jax.evaluators.results import metrics as metrics_of
from clip_jax.files import write_atomically
from clip_jax.parallel.agreement import all_gather_objects, check_agreement, on_all_processes
from clip_jax.parallel.preemption import PreemptionHandler
from clip_jax.training.checkpoint import Checkpoints, report_full_disk
from clip_jax.training.curves import save_curves
from clip_jax.training.evaluations import Evaluations
from clip_jax.training.initialise import init_from
from clip_jax.training.metrics import MetricWriter, WindowMeans
from clip_jax.training.prefetch import Prefetcher
from clip_jax.training.resume import new_record, resume
from clip_jax.training.run_lock import RunLock
from clip_jax.training.setup import (
  TrainSetup,
  build_setup,
  compile_train_step,
  initial_state,
  jit_diagnosis,
)
from clip_jax.training.startup import agreement_facts, summary, writable_folder
from clip_jax.training.state import TrainState

PREEMPTED = 75  # Exit code after SIGTERM: the state was saved; restart to resume.
EVALUATION_FAILED = 3  # Exit code of a run that is trained and saved, but some evaluator failed.


def run(
  config: ConfigDict,
  workdir: Path | str,
  *,
  hints: Callable[[TrainSetup], Iterable[str]] = lambda setup: (),
) -> int:
  """Trains `config` in `workdir`, resuming from the newest checkpoint there if any.

  Ctrl-C, or a notebook's stop button, saves after the current step; a second one stops at once.

  Args:
    config: config of a training run.
    workdir: output folder, created if missing.
    hints: function from the setup to lines that are printed before the first step.

  Returns:
    Exit code: 0; `PREEMPTED` if SIGTERM arrived and the state was saved; or `EVALUATION_FAILED` if
    the run is trained and saved, but an evaluator raised an error.

  Raises:
    UserError: raised before anything is compiled, except for damaged data, a loss that is not
      finite, and a full disk.
    KeyboardInterrupt: Ctrl-C was pressed.
  """
  setup = on_all_processes(lambda: build_setup(config))
  # Create the folder only now, so that a mistake in the config leaves none behind.
  workdir = on_all_processes(lambda: writable_folder(Path(workdir)))
  agreed = check_agreement(lambda: agreement_facts(setup), workdir)
  with (
    PreemptionHandler() as stop,
    jax.set_mesh(setup.mesh),
    report_full_disk(workdir),
    RunLock(workdir) as lock,
    contextlib.closing(
      Checkpoints(
        workdir / "checkpoints",
        max_checkpoints=setup.training.max_checkpoints,
        before_save=lock.check,
      )
    ) as checkpoints,
  ):
    start = 0
    record, changes = new_record(setup), []
    # Restore before writing anything, so that a run of a different model here stays untouched.
    if checkpoints.latest() is not None:
      setup, record, state, changes = resume(setup, record, checkpoints, workdir)
      start = int(state.step)
    else:
      state = initial_state(setup)
      if setup.training.init_from:
        state = init_from(setup, state)
    if jax.process_index() == 0:
      record.write(workdir)
      write_atomically(workdir / "config.json", config_lib.to_saved(setup.config) + "\n")
    with MetricWriter(
      workdir,
      total_steps=setup.total_steps,
      start_step=start,
      writes=jax.process_index() == 0,
      wandb=setup.training.wandb,
    ) as report:
      report.log_config(config_lib.to_saved(setup.config))
      start_lines = (*summary(setup, workdir, start), *hints(setup), *changes, *agreed)
      for line in (*start_lines, *checkpoints.damage):
        report.note(line)
      evaluations = Evaluations(setup, workdir, report)
      if start < setup.total_steps:
        with stop.on_interrupt():
          state = train(setup, state, start, checkpoints, report, stop, evaluations)
      step = int(state.step)
      if step == setup.total_steps:
        finish(setup, state, start, checkpoints, report, evaluations)
        return EVALUATION_FAILED if evaluations.failed else 0
      interrupted = stop.received == signal.SIGINT
      report.note(
        f"{'Ctrl-C' if interrupted else 'SIGTERM'}: saved at step {step}; rerun the "
        "command to resume from there."
      )
      del state  # A notebook keeps the frames of its last error, and the arrays in them, alive.
  if interrupted:
    raise KeyboardInterrupt
  return PREEMPTED


def train(
  setup: TrainSetup,
  state: Any,
  start: int,
  checkpoints: Checkpoints,
  report: MetricWriter,
  stop: PreemptionHandler,
  evaluations: Evaluations,
) -> Any:
  """Trains to the last step, or until `stop` asks to save and stop; returns the state then."""
  training, config = setup.training, setup.config
  if start and due(start, training.eval_every):  # The run may have been killed while evaluating.
    evaluations.run(setup.evaluators, start, state)
  train_step = compile_train_step(setup)
  with contextlib.closing(Prefetcher(setup, start)) as feed:
    log = StepLogger(setup, report, feed, start)
    for step in range(start + 1, setup.total_steps + 1):
      with jax.transfer_guard("disallow"):
        state, metrics = train_step(state, feed.batch)
      if step < setup.total_steps:
        feed.advance()  # Load the next batch while the device is busy with this step.
      log.add(metrics)
      last, stopping = step == setup.total_steps, stop.should_stop(step)
      logs = last or step == start + 1 or due(step, training.log_every)
      evaluates = not last and due(step, training.eval_every)
      # Save at every evaluation and at the end, before evaluators run, so that neither an error in
      # them nor a kill during them costs any training.
      saves = last or stopping or evaluates or due(step, training.save_every)
      if logs or evaluates or saves:
        values = log.fetch()
        # Steps after a failed one change nothing, so it is enough to check before using the state.
        if values["skipped_steps"] > training.skip_nonfinite:
          checkpoints.wait()
          raise nonfinite(setup, state, checkpoints)
      if logs:
        log.write(step, values)
        checkpoints.check()
      if saves:
        checkpoints.save(step, state, config)
      if evaluates:
        checkpoints.wait()
        context = evaluations.run(setup.evaluators, step, state)
        if context.embedder.embedded:
          report.note(context.embedder.speed())
        log.restart_clock()
      if stopping:
        break
    checkpoints.wait()
    feed.report_damage(report)
    return state


def finish(
  setup: TrainSetup,
  state: TrainState,
  start: int,
  checkpoints: Checkpoints,
  report: MetricWriter,
  evaluations: Evaluations,
) -> None:
  """Evaluates the trained model, which is saved already, and prints the results."""
  total, workdir = setup.total_steps, evaluations.workdir
  evaluators = {**setup.evaluators, **setup.final_evaluators}
  missing = evaluations.missing(evaluators, total)
  if start >= total:
    report.note(
      f"This run was already done at step {start}; "
      + (f"evaluating {', '.join(missing)}." if missing else "all evaluators have results.")
    )
  context = evaluations.run(evaluators, total, state)
  evaluations.draw(setup.final_evaluators, total, context)
  report.close()
  draw_curves(workdir, report)
  if results := metrics_of(context.results):
    speed = context.embedder.speed() if context.embedder.embedded else ""
    report.note("\n" + evaluations_table(results) + "\n\n" + (f"{speed}\n" if speed else ""))
  for path in (
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "curves.png",
    *(f"{name}.png" for name in setup.final_evaluators),
  ):
    if (workdir / path).exists():
      report.note(f"  {workdir / path}")
  if evaluations.failed:
    report.note(
      f"The model is trained and saved, but {len(evaluations.failed)} evaluations failed: "
      f"{', '.join(evaluations.failed)}; see above. Rerun the command to run evaluators that have "
      "no results for the trained model."
    )


def draw_curves(workdir: Path, report: MetricWriter) -> None:
  """Saves the curves of the run; a failure is reported, because the run itself is complete."""
  if jax.process_index() != 0:
    return
  try:
    save_curves(workdir)
  except Exception as e:
    report.note(f"The curves of the run could not be drawn: {type(e).__name__}: {e}")


def nonfinite(setup: TrainSetup, state: Any, checkpoints: Checkpoints) -> UserError:
  """Returns the error for a step that was not finite, with its gradient norms and records.

  `state` is the one before that step, so the step is recomputed here to get the norms by part.
  """
  step = int(state.step)
  with contextlib.closing(Prefetcher(setup, step)) as feed:
    norms = jax.device_get(jit_diagnosis(setup)(state, feed.batch))
  found = {n: float(x) for n, x in norms.items()}
  held = all_gather_objects(
    {"rows": feed.rows.tolist(), "records": base_indices_of(setup.data.source, feed.index).tolist()}
  )
  by_row = {row: record for one in held for row, record in zip(one["rows"], one["records"])}
  records = [by_row[row] for row in sorted(by_row)]
  loss = found.pop("loss")
  path = checkpoints.folder.parent / "nonfinite.json"
  if jax.process_index() == 0:
    content = {
      "step": step + 1,
      "loss": repr(loss),
      "records": records,
      "grad_norms": {name: repr(norm) for name, norm in found.items()},
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")
  listed = ", ".join(f"{name} {norm:.4g}" for name, norm in found.items())
  again = all(map(math.isfinite, (loss, *found.values())))
  saved = checkpoints.latest()
  return UserError(
    f"Step {step + 1} was not finite: loss {loss:.4g}; gradient norms: {listed}. "
    + ("These numbers were recomputed and are finite, so the hardware may be faulty. " * again)
    + f"Indices of its {len(records)} records in the source: {', '.join(map(str, records[:10]))}"
    + (f" and {len(records) - 10} more" if len(records) > 10 else "")
    + f"; {path} lists all. The step was not applied, nor any after it. Newest checkpoint: "
    f"{'step ' + str(saved) if saved else 'none'}. {checkpoints.doubt()}Lower "
    "--config.optimizer.learning_rate, or skip up to N such steps with "
    "--config.train.skip_nonfinite=N, and rerun the command to resume from the checkpoint."
  )


def due(step: int, every: int) -> bool:
  """Whether an action with an interval of `every` steps is due at this step; 0 means never."""
  return every > 0 and step % every == 0


class StepLogger:
  """Keeps metrics on the device until a line is due, then fetches them in one transfer."""

  def __init__(self, setup: TrainSetup, report: MetricWriter, feed: Prefetcher, start: int):
    self.setup, self.report, self.feed, self.step = setup, report, feed, start
    self.window = WindowMeans()
    self.before: dict | None = None
    self.restart_clock()

  def restart_clock(self) -> None:
    """Excludes the time since the last line from the throughput."""
    self.begun, self.waited = time.perf_counter(), self.feed.waited

  def add(self, metrics: dict) -> None:
    """Adds the metrics of the step just dispatched, and waits for the step before it."""
    # At most two steps are in flight, so that their batches do not fill the device memory.
    jax.block_until_ready(self.before)
    self.before = metrics
    self.window.add(metrics)

  def fetch(self) -> dict[str, float]:
    """Returns the means of the metrics since the last line; see `WindowMeans`."""
    return self.window.fetch()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Logs metrics, and the throughput since the previous line; a new window begins."""
    values = {
      f"train/{name}": x
      for name, x in metrics.items()
      if name != "skipped_steps" or self.setup.training.skip_nonfinite
    }
    elapsed = time.perf_counter() - self.begun
    images = (step - self.step) * self.setup.data.batch_size
    values["train/images_per_second"] = images / elapsed
    values["train/data_wait_fraction"] = min(1.0, (self.feed.waited - self.waited) / elapsed)
    values["train/epoch"] = self.setup.history.samples(step) / len(self.setup.data.source)
    values["train/flops"] = self.setup.history.flops(step)
    self.report.log(step, values)
    self.step = step
    self.window = WindowMeans()
    self.feed.check()
    self.restart_clock()
