"""The training loop: step after step, and what happens between steps."""

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

PREEMPTED = 75  # Exit code: saved after SIGTERM, start me again.


def run(config: ConfigDict, workdir: Path | str) -> int:
  """Trains what `config` describes in `workdir`, from its newest checkpoint if it has one.

  Ctrl-C, or a notebook's stop button, saves after the step under way; a second one does not wait.

  Returns:
    Exit code: 0, or `PREEMPTED` when SIGTERM came and the state was saved.

  Raises:
    UserError: said before anything is compiled, but for damage in the data, a loss that is not
      finite, and a disk that is full.
    KeyboardInterrupt: Ctrl-C came.
  """
  parts = together(lambda: prepare(config))
  workdir = together(lambda: writable(Path(workdir)))  # A mistake leaves no folder behind.
  agreed = check(lambda: facts(parts), workdir)
  with (Stop() as stop, jax.set_mesh(parts.mesh), stopped_when_full(workdir),
        contextlib.closing(Checkpoints(workdir / "checkpoints",
                                       keep=parts.training.keep)) as checkpoints):
    start = checkpoints.latest() or 0
    # Before anything is written: if the run that lies here is of another model, it stays as it is.
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
      report.note(f"{'Ctrl-C' if interrupted else 'SIGTERM'}: saved at step {step}; the same "
                  "command goes on from there.")
      del state  # A notebook keeps the frames of its last error, and these arrays with them.
  if interrupted:
    raise KeyboardInterrupt
  return PREEMPTED


def started(parts: Parts, state: Any) -> Any:
  """A train state before its first step, with the model that `train.start_from` names.

  Raises:
    UserError: there is none, or it differs in more than image size and text length.
  """
  # Whoever starts this config vouches for the modules that it names.
  trained = load(parts.training.start_from, trust=config_lib.modules(parts.config)).model
  grids = (getattr(model.image, "grid", None) for model in (trained, parts.learner.model))
  params = fitted(split(trained)[1], state.params["model"], *grids)
  # Averages of BatchNorm come along; fixed positions are those of this image size.
  averages = nnx.to_pure_dict(nnx.state(trained, nnx.BatchStat))
  on_device = lambda x, like: jax.device_put(x, like.sharding)
  return dataclasses.replace(
      state,
      params=jax.tree.map(on_device, {**state.params, "model": params}, state.params),
      stats=jax.tree.map(on_device, overlaid(state.stats, {"model": averages}), state.stats))


def train(parts: Parts, state: Any, start: int, checkpoints: Checkpoints, report: Report,
          stop: Stop) -> Any:
  """The state after the last step; or, once `stop` says so, after the step that it was saved at."""
  training, config = parts.training, parts.config
  train_step = parts.train_step
  feed = Feed(parts, start)
  log = Log(parts, report, feed, start)
  for step in range(start + 1, parts.total_steps + 1):
    with jax.transfer_guard("disallow"):
      state, metrics = train_step(state, feed.batch)
    if step < parts.total_steps:
      feed.advance()  # While the device is busy with the step just started.
    log.add(metrics)
    last, stopping = step == parts.total_steps, stop.at(step)
    logs = last or step == start + 1 or due(step, training.log_every)
    evaluates = not last and due(step, training.eval_every)
    saves = not last and (stopping or due(step, training.save_every))
    if logs or evaluates or saves:
      values = log.fetch()
      # Steps after a bad one change nothing: early enough is before anybody uses the state.
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
  """Evaluates the end of a run, shows it, and saves."""
  total, again = parts.total_steps, start >= parts.total_steps
  if again:
    report.note(f"This run was done at step {start}; here is its evaluation.")
  trained = Shared(embedder(parts, state), report.note)
  evaluators = {**parts.evaluators, **parts.final_evaluators}
  results = evaluate(evaluators, trained)
  if not again:
    # The checkpoint comes last: where it is, everything before it was written.
    report.log(total, results, show=False)
    checkpoints.save(total, state, parts.config)
  checkpoints.wait()
  report.close()
  if results:
    report.note("\n" + evaluations(results) + f"\n\n{trained.speed()}\n")
  for name, evaluator in parts.final_evaluators.items():
    if hasattr(evaluator, "picture"):
      picture = evaluator.picture(trained)  # Which takes all processes.
      if jax.process_index() == 0:
        picture.save(workdir / f"{name}.png")
  for path in ("config.json", "metrics.jsonl", "tensorboard", "checkpoints",
               *(f"{name}.png" for name in parts.final_evaluators)):
    if (workdir / path).exists():
      report.note(f"  {workdir / path}")


def evaluate(evaluators: dict[str, Any], model: Embedder | Shared) -> dict[str, float]:
  """What all evaluators say, by `evaluator/metric`; images and texts are embedded once for all."""
  return answers.metrics(answers.ask(evaluators, Shared.of(model)))


def embedder(parts: Parts, state: Any) -> Embedder:
  """The model of a train state with the preprocessing and the tokenizer of its config."""
  learner = nnx.merge(parts.graphdef, state.params, state.stats)
  return embedder_of(learner, parts.data.views.tokenizer, mesh=parts.mesh)


def check_skipped(skipped: int, allowed: int) -> None:
  """Raises when a run that is gone on with has left out more steps than are allowed now."""
  if skipped > allowed:
    raise UserError(f"This run has left out {skipped} steps that were not finite, and "
                    f"train.skip_nonfinite={allowed}. Set --config.train.skip_nonfinite to "
                    f"{skipped} or more, or start again in another --workdir.")


def nonfinite(parts: Parts, state: Any, checkpoints: Checkpoints) -> UserError:
  """Says of the step that stopped a run what was not finite, and which records it saw.

  The state is the one before that step, so the step can be made again, slowly and to the point.
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
      + ("Made again, as these numbers are, it is finite: the hardware may be at fault. " * again)
      + f"Its {len(records)} records are number {', '.join(map(str, records[:10]))}"
      + (f" and {len(records) - 10} more" if len(records) > 10 else "")
      + f" of the source; {path} lists all. Nothing was changed by it or after it, and the newest "
      f"checkpoint is {'that of step ' + str(saved) if saved else 'none yet'}. Lower "
      "--config.optimizer.learning_rate, or leave out up to N such steps with "
      "--config.train.skip_nonfinite=N; the same command goes on from the checkpoint.")


def due(step: int, every: int) -> bool:
  """Whether something that happens every so many steps happens at this one; 0 is never."""
  return every > 0 and step % every == 0


class Log:
  """Metrics kept on the device until a line is due, then fetched in one transfer."""

  def __init__(self, parts: Parts, report: Report, feed: Feed, start: int):
    self.parts, self.report, self.feed, self.step = parts, report, feed, start
    self.metrics: dict | None = None
    self.before: dict | None = None
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves what happened since the last line out of the speed."""
    self.begun, self.waited = time.perf_counter(), self.feed.waited

  def add(self, metrics: dict) -> None:
    """Takes the metrics of a step just started; waits for the step before it, and no longer."""
    # At most two steps are under way, so that their batches do not fill the device.
    jax.block_until_ready(self.before)
    self.before = self.metrics = metrics

  def fetch(self) -> dict[str, float]:
    """The metrics of the last step."""
    return {name: float(x) for name, x in jax.device_get(self.metrics).items()}

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """One line: the metrics of the last step and the speed since the line before."""
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
