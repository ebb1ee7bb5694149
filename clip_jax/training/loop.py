"""The training loop: steps, logging, evaluation and checkpoints."""

import contextlib
import json
import math
from pathlib import Path
import signal
import time
from typing import Any

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict

from clip_jax import config as config_lib
from clip_jax.cli.formatting import evaluations
from clip_jax.data.selection import base_indices_of
from clip_jax.errors import UserError
from clip_jax.evaluators import results
from clip_jax.evaluators.embedding_cache import EmbeddingCache
from clip_jax.files import write_atomically
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.loading import embedder_of
from clip_jax.parallel.agreement import all_gather_objects, check_agreement, on_all_processes
from clip_jax.parallel.preemption import PreemptionHandler
from clip_jax.training.checkpoint import Checkpoints, report_full_disk
from clip_jax.training.initialise import init_from
from clip_jax.training.metrics import MetricWriter
from clip_jax.training.prefetch import Prefetcher
from clip_jax.training.setup import TrainSetup, build_setup
from clip_jax.training.startup import agreement_facts, summary, writable_folder
from clip_jax.training.state import TrainState

PREEMPTED = 75  # Exit code after SIGTERM: the state was saved; restart to resume.


def run(config: ConfigDict, workdir: Path | str) -> int:
  """Trains `config` in `workdir`, resuming from the newest checkpoint there if any.

  Ctrl-C, or a notebook's stop button, saves after the current step; a second one stops at once.

  Returns:
    Exit code: 0, or `PREEMPTED` if SIGTERM arrived and the state was saved.

  Raises:
    UserError: raised before anything is compiled, except for damaged data, a loss that is not
      finite, and a full disk.
    KeyboardInterrupt: Ctrl-C was pressed.
  """
  parts = on_all_processes(lambda: build_setup(config))
  # Create the folder only now, so that a mistake in the config leaves none behind.
  workdir = on_all_processes(lambda: writable_folder(Path(workdir)))
  agreed = check_agreement(lambda: agreement_facts(parts), workdir)
  with (
    PreemptionHandler() as stop,
    jax.set_mesh(parts.mesh),
    report_full_disk(workdir),
    contextlib.closing(
      Checkpoints(workdir / "checkpoints", max_checkpoints=parts.training.max_checkpoints)
    ) as checkpoints,
  ):
    start = checkpoints.latest() or 0
    # Restore before writing anything, so that a run of a different model here stays untouched.
    if start:
      state = checkpoints.restore(parts.state)
      check_skipped(int(state.skipped), parts.training.skip_nonfinite)
    else:
      shardings = jax.tree.map(lambda x: x.sharding, parts.state)
      state = jax.jit(parts.make, static_argnums=0, out_shardings=shardings)(config.seed)
      if parts.training.init_from:
        state = init_from(parts, state)
    if jax.process_index() == 0:
      write_atomically(workdir / "config.json", config_lib.to_saved(config) + "\n")
    with MetricWriter(
      workdir,
      total_steps=parts.total_steps,
      start_step=start,
      writes=jax.process_index() == 0,
      wandb=parts.training.wandb,
    ) as report:
      for line in (*summary(parts, workdir, start), *agreed):
        report.note(line)
      if start < parts.total_steps:
        with stop.on_interrupt():
          state = train(parts, state, start, checkpoints, report, stop)
      step = int(state.step)
      if step == parts.total_steps:
        finish(parts, state, start, checkpoints, report, workdir)
        return 0
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
  parts: TrainSetup,
  state: Any,
  start: int,
  checkpoints: Checkpoints,
  report: MetricWriter,
  stop: PreemptionHandler,
) -> Any:
  """Trains to the last step, or until `stop` asks to save and stop; returns the state then."""
  training, config = parts.training, parts.config
  train_step = parts.train_step
  feed = Prefetcher(parts, start)
  log = StepLogger(parts, report, feed, start)
  for step in range(start + 1, parts.total_steps + 1):
    with jax.transfer_guard("disallow"):
      state, metrics = train_step(state, feed.batch)
    if step < parts.total_steps:
      feed.advance()  # Load the next batch while the device is busy with this step.
    log.add(metrics)
    last, stopping = step == parts.total_steps, stop.should_stop(step)
    logs = last or step == start + 1 or due(step, training.log_every)
    evaluates = not last and due(step, training.eval_every)
    saves = not last and (stopping or due(step, training.save_every))
    if logs or evaluates or saves:
      values = log.fetch()
      # Steps after a failed one change nothing, so it is enough to check before using the state.
      if values["skipped_steps"] > training.skip_nonfinite:
        checkpoints.wait()
        raise nonfinite(parts, state, checkpoints)
    if logs:
      log.write(step, values)
      checkpoints.check()
    if evaluates:
      model = EmbeddingCache(embedder(parts, state), report.note)
      report.log(step, evaluate(parts.evaluators, model))
      report.note(model.speed())
      log.restart_clock()
    if saves:
      checkpoints.save(step, state, config)
    if stopping:
      break
  checkpoints.wait()
  feed.report_damage(report)
  return state


def finish(
  parts: TrainSetup,
  state: TrainState,
  start: int,
  checkpoints: Checkpoints,
  report: MetricWriter,
  workdir: Path,
) -> None:
  """Evaluates the trained model, saves the last checkpoint, and prints the results."""
  total, again = parts.total_steps, start >= parts.total_steps
  if again:
    report.note(f"This run was already done at step {start}; evaluating it again.")
  trained = EmbeddingCache(embedder(parts, state), report.note)
  evaluators = {**parts.evaluators, **parts.final_evaluators}
  results = evaluate(evaluators, trained)
  if not again:
    # Save the checkpoint last, so that its presence means that everything else was written.
    report.log(total, results, show=False)
    checkpoints.save(total, state, parts.config)
  checkpoints.wait()
  report.close()
  if results:
    report.note("\n" + evaluations(results) + f"\n\n{trained.speed()}\n")
  for name, evaluator in parts.final_evaluators.items():
    if hasattr(evaluator, "picture"):
      picture = evaluator.picture(trained)  # All processes must take part.
      if jax.process_index() == 0:
        picture.save(workdir / f"{name}.png")
  for path in (
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    *(f"{name}.png" for name in parts.final_evaluators),
  ):
    if (workdir / path).exists():
      report.note(f"  {workdir / path}")


def evaluate(evaluators: dict[str, Any], model: Embedder | EmbeddingCache) -> dict[str, float]:
  """Runs all evaluators on shared embeddings; returns their metrics by `evaluator/metric`."""
  return results.metrics(results.evaluate_all(evaluators, EmbeddingCache.of(model)))


def embedder(parts: TrainSetup, state: Any) -> Embedder:
  """Returns the model of a train state with the preprocessing and tokenizer of its config."""
  learner = nnx.merge(parts.graphdef, state.params, state.stats)
  return embedder_of(learner, parts.data.views.tokenizer, mesh=parts.mesh)


def check_skipped(skipped: int, allowed: int) -> None:
  """Raises UserError if a resumed run has already skipped more steps than are now allowed."""
  if skipped > allowed:
    raise UserError(
      f"This run has skipped {skipped} steps that were not finite, but "
      f"train.skip_nonfinite={allowed}. Set --config.train.skip_nonfinite to "
      f"{skipped} or more, or start over in another --workdir."
    )


def nonfinite(parts: TrainSetup, state: Any, checkpoints: Checkpoints) -> UserError:
  """Returns the error for a step that was not finite, with its gradient norms and records.

  `state` is the one before that step, so the step is recomputed here to get the norms by part.
  """
  step = int(state.step)
  feed = Prefetcher(parts, step)
  found = {n: float(x) for n, x in jax.device_get(parts.diagnosis(state, feed.batch)).items()}
  held = all_gather_objects(
    {"rows": feed.rows.tolist(), "records": base_indices_of(parts.data.source, feed.index).tolist()}
  )
  by_row = {row: record for one in held for row, record in zip(one["rows"], one["records"])}
  records = [by_row[row] for row in sorted(by_row)]
  loss = found.pop("loss")
  path = checkpoints.folder.parent / "nonfinite.json"
  if jax.process_index() == 0:
    path.write_text(
      json.dumps(
        {
          "step": step + 1,
          "loss": repr(loss),
          "records": records,
          "gradient_norms": {name: repr(norm) for name, norm in found.items()},
        },
        indent=1,
      )
      + "\n"
    )
  norms = ", ".join(f"{name} {norm:.4g}" for name, norm in found.items())
  again = all(map(math.isfinite, (loss, *found.values())))
  saved = checkpoints.latest()
  return UserError(
    f"Step {step + 1} was not finite: loss {loss:.4g}; gradient norms: {norms}. "
    + ("These numbers were recomputed and are finite, so the hardware may be faulty. " * again)
    + f"Indices of its {len(records)} records in the source: {', '.join(map(str, records[:10]))}"
    + (f" and {len(records) - 10} more" if len(records) > 10 else "")
    + f"; {path} lists all. The step was not applied, nor any after it. Newest checkpoint: "
    f"{'step ' + str(saved) if saved else 'none'}. Lower "
    "--config.optimizer.learning_rate, or skip up to N such steps with "
    "--config.train.skip_nonfinite=N, and rerun the command to resume from the checkpoint."
  )


def due(step: int, every: int) -> bool:
  """Whether an action with an interval of `every` steps is due at this step; 0 means never."""
  return every > 0 and step % every == 0


class StepLogger:
  """Keeps metrics on the device until a line is due, then fetches them in one transfer."""

  def __init__(self, parts: TrainSetup, report: MetricWriter, feed: Prefetcher, start: int):
    self.parts, self.report, self.feed, self.step = parts, report, feed, start
    self.metrics: dict | None = None
    self.before: dict | None = None
    self.restart_clock()

  def restart_clock(self) -> None:
    """Excludes the time since the last line from the throughput."""
    self.begun, self.waited = time.perf_counter(), self.feed.waited

  def add(self, metrics: dict) -> None:
    """Adds the metrics of the step just dispatched, and waits for the step before it."""
    # At most two steps are in flight, so that their batches do not fill the device memory.
    jax.block_until_ready(self.before)
    self.before = self.metrics = metrics

  def fetch(self) -> dict[str, float]:
    """Returns the metrics of the last step as floats."""
    return {name: float(x) for name, x in jax.device_get(self.metrics).items()}

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Logs the metrics of a step, and the throughput since the previous line."""
    values = {
      f"train/{name}": x
      for name, x in metrics.items()
      if name != "skipped_steps" or self.parts.training.skip_nonfinite
    }
    elapsed = time.perf_counter() - self.begun
    images = (step - self.step) * self.parts.data.batch_size
    values["train/images_per_second"] = images / elapsed
    values["train/data_wait_fraction"] = min(1.0, (self.feed.waited - self.waited) / elapsed)
    samples = step * self.parts.data.batch_size
    values["train/epoch"] = samples / len(self.parts.data.source)
    values["train/flops"] = samples * self.parts.compute.flops
    self.report.log(step, values)
    self.step = step
    self.feed.check()
    self.restart_clock()
