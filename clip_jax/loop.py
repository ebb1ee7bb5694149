"""The training loop: steps, logging, evaluation and checkpoints."""

import contextlib
import dataclasses
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
from clip_jax.bringup import check, exchange, together
from clip_jax.checkpoint import Checkpoints, stopped_when_full
from clip_jax.data.selection import places_in
from clip_jax.embedder import Embedder
from clip_jax.errors import UserError
from clip_jax.evaluators import answers
from clip_jax.evaluators.shared import Shared
from clip_jax.feed import Feed
from clip_jax.loading import embedder_of, load
from clip_jax.model import split
from clip_jax.parts import Parts, prepare
from clip_jax.positions import fitted, overlaid
from clip_jax.report import Report, evaluations
from clip_jax.startup import facts, summary, writable
from clip_jax.step import TrainState
from clip_jax.stop import Stop

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
  parts = together(lambda: prepare(config))
  # Create the folder only now, so that a mistake in the config leaves none behind.
  workdir = together(lambda: writable(Path(workdir)))
  agreed = check(lambda: facts(parts), workdir)
  with (Stop() as stop, jax.set_mesh(parts.mesh), stopped_when_full(workdir),
        contextlib.closing(Checkpoints(workdir / "checkpoints",
                                       keep=parts.training.keep)) as checkpoints):
    start = checkpoints.latest() or 0
    # Restore before writing anything, so that a run of a different model here stays untouched.
    if start:
      state = checkpoints.restore(parts.state)
      check_skipped(int(state.skipped), parts.training.skip_nonfinite)
    else:
      shardings = jax.tree.map(lambda x: x.sharding, parts.state)
      state = jax.jit(parts.make, static_argnums=0, out_shardings=shardings)(config.seed)
      if parts.training.start_from:
        state = started(parts, state)
    if jax.process_index() == 0:
      (workdir / "config.json").write_text(config_lib.to_json(config) + "\n")
    with Report(workdir, total_steps=parts.total_steps, start_step=start,
                writes=jax.process_index() == 0, wandb=parts.training.wandb) as report:
      for line in (*summary(parts, workdir, start), *agreed):
        report.note(line)
      if start < parts.total_steps:
        with stop.on_interrupt():
          state = train(parts, state, start, checkpoints, report, stop)
      step = int(state.step)
      if step == parts.total_steps:
        finish(parts, state, start, checkpoints, report, workdir)
        return 0
      interrupted = stop.asked == signal.SIGINT
      report.note(f"{'Ctrl-C' if interrupted else 'SIGTERM'}: saved at step {step}; rerun the "
                  "command to resume from there.")
      del state  # A notebook keeps the frames of its last error, and the arrays in them, alive.
  if interrupted:
    raise KeyboardInterrupt
  return PREEMPTED


def started(parts: Parts, state: Any) -> Any:
  """Returns the initial train state with the parameters of the model at `train.start_from`.

  Raises:
    UserError: there is no such model, or it differs in more than image size and context length.
  """
  # The user starts this config, so the modules that it names are trusted.
  trained = load(parts.training.start_from, trust=config_lib.modules(parts.config)).model
  grids = (getattr(model.image, "grid", None) for model in (trained, parts.learner.model))
  params = fitted(split(trained)[1], state.params["model"], *grids)
  # Take over BatchNorm averages, but not fixed position embeddings, which fit one image size only.
  averages = nnx.to_pure_dict(nnx.state(trained, nnx.BatchStat))
  on_device = lambda x, like: jax.device_put(x, like.sharding)
  return dataclasses.replace(
      state,
      params=jax.tree.map(on_device, {**state.params, "model": params}, state.params),
      stats=jax.tree.map(on_device, overlaid(state.stats, {"model": averages}), state.stats))


def train(parts: Parts, state: Any, start: int, checkpoints: Checkpoints, report: Report,
          stop: Stop) -> Any:
  """Trains to the last step, or until `stop` asks to save and stop; returns the state then."""
  training, config = parts.training, parts.config
  train_step = parts.train_step
  feed = Feed(parts, start)
  log = Log(parts, report, feed, start)
  for step in range(start + 1, parts.total_steps + 1):
    with jax.transfer_guard("disallow"):
      state, metrics = train_step(state, feed.batch)
    if step < parts.total_steps:
      feed.advance()  # Load the next batch while the device is busy with this step.
    log.add(metrics)
    last, stopping = step == parts.total_steps, stop.at(step)
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
      model = Shared(embedder(parts, state), report.note)
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


def finish(parts: Parts, state: TrainState, start: int, checkpoints: Checkpoints, report: Report,
           workdir: Path) -> None:
  """Evaluates the trained model, saves the last checkpoint, and prints the results."""
  total, again = parts.total_steps, start >= parts.total_steps
  if again:
    report.note(f"This run was already done at step {start}; evaluating it again.")
  trained = Shared(embedder(parts, state), report.note)
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
  for path in ("config.json", "metrics.jsonl", "tensorboard", "checkpoints",
               *(f"{name}.png" for name in parts.final_evaluators)):
    if (workdir / path).exists():
      report.note(f"  {workdir / path}")


def evaluate(evaluators: dict[str, Any], model: Embedder | Shared) -> dict[str, float]:
  """Runs all evaluators on shared embeddings; returns their metrics by `evaluator/metric`."""
  return answers.metrics(answers.ask(evaluators, Shared.of(model)))


def embedder(parts: Parts, state: Any) -> Embedder:
  """Returns the model of a train state with the preprocessing and tokenizer of its config."""
  learner = nnx.merge(parts.graphdef, state.params, state.stats)
  return embedder_of(learner, parts.data.views.tokenizer, mesh=parts.mesh)


def check_skipped(skipped: int, allowed: int) -> None:
  """Raises UserError if a resumed run has already skipped more steps than are now allowed."""
  if skipped > allowed:
    raise UserError(f"This run has skipped {skipped} steps that were not finite, but "
                    f"train.skip_nonfinite={allowed}. Set --config.train.skip_nonfinite to "
                    f"{skipped} or more, or start over in another --workdir.")


def nonfinite(parts: Parts, state: Any, checkpoints: Checkpoints) -> UserError:
  """Returns the error for a step that was not finite, with its gradient norms and records.

  `state` is the one before that step, so the step is recomputed here to get the norms by part.
  """
  step = int(state.step)
  feed = Feed(parts, step)
  found = {n: float(x) for n, x in jax.device_get(parts.diagnosis(state, feed.batch)).items()}
  held = exchange({"rows": feed.rows.tolist(),
                   "records": places_in(parts.data.source, feed.index).tolist()})
  by_row = {row: record for one in held for row, record in zip(one["rows"], one["records"])}
  records = [by_row[row] for row in sorted(by_row)]
  loss = found.pop("loss")
  path = checkpoints.folder.parent / "nonfinite.json"
  if jax.process_index() == 0:
    path.write_text(json.dumps({
        "step": step + 1, "loss": repr(loss), "records": records,
        "gradient_norms": {name: repr(norm) for name, norm in found.items()}}, indent=1) + "\n")
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
      "--config.train.skip_nonfinite=N, and rerun the command to resume from the checkpoint.")


def due(step: int, every: int) -> bool:
  """Whether an action with an interval of `every` steps is due at this step; 0 means never."""
  return every > 0 and step % every == 0


class Log:
  """Keeps metrics on the device until a line is due, then fetches them in one transfer."""

  def __init__(self, parts: Parts, report: Report, feed: Feed, start: int):
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
    values = {f"train/{name}": x for name, x in metrics.items()
              if name != "skipped_steps" or self.parts.training.skip_nonfinite}
    elapsed = time.perf_counter() - self.begun
    images = (step - self.step) * self.parts.data.batch_size
    values["train/images_per_second"] = images / elapsed
    values["train/data_wait"] = min(1.0, (self.feed.waited - self.waited) / elapsed)
    samples = step * self.parts.data.batch_size
    values["train/epoch"] = samples / len(self.parts.data.source)
    values["train/flops"] = samples * self.parts.compute.flops
    self.report.log(step, values)
    self.step = step
    self.feed.check()
    self.restart_clock()
