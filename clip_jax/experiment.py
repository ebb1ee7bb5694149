"""What a config file returns: every section of a training run, each a call, none left out."""

from collections.abc import Collection
import dataclasses
import inspect
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.config import build, call
from clip_jax.data.subset import Subset, count
from clip_jax.errors import UserError
from clip_jax.interfaces import Objective, Source
from clip_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Data:
  """What is trained on, and how it is read.

  Attributes:
    source: the records; when built, those of them that are trained on.
    views: makes an example of a record.
    batch_size: examples in the global batch, B.
    size: how many of the records, as 10_000_000, "10M" or "10%"; None for all. They are those of
      `Subset` with seed 0 whatever the run's seed, so that smaller sets are inside larger ones.
    threads: that make batches ahead in each process.
    workers: processes that make batches ahead on each host; 0 makes them in this one.
  """
  source: Source
  views: Any
  batch_size: int = 256
  size: int | str | None = None
  threads: int = 16
  workers: int = 0

  def __post_init__(self) -> None:
    if not isinstance(self.batch_size, int) or self.batch_size < 1:
      raise UserError(f"batch_size {self.batch_size} is not a number of examples from 1 on. Set "
                      "--config.data.batch_size, as in --config.data.batch_size=256.")
    if self.size is not None:
      object.__setattr__(self, "source", Subset(self.source, self.size))


@dataclasses.dataclass(frozen=True)
class Training:
  """How long to train, and what happens on the way.

  Attributes:
    steps, samples, epochs: the length of the run; exactly one of them. samples may be written as
      "340M".
    start_from: a trained model, as `clip_jax.load` takes: its parameters are those that the run
      begins with, under a new optimizer and objective. Image size and text length may be others. A
      run that goes on from its own checkpoint does not look at it.
    microbatches: pieces that the batch is embedded in, one after the other; same gradient, less
      memory.
    log_every, eval_every, save_every: in steps; 0 is never (the end always evaluates and saves).
    keep: checkpoints kept, the newest.
    wandb: Weights & Biases project that logs go to as well.
    skip_nonfinite: steps that may be left out, in the whole run, because their loss or gradient is
      not finite; the next one stops the run.
  """
  steps: int | None = None
  samples: int | str | None = None
  epochs: float | None = None
  start_from: str | None = None
  microbatches: int = 1
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  keep: int = 2
  wandb: str | None = None
  skip_nonfinite: int = 0

  def total_steps(self, *, batch_size: int, examples: int) -> int:
    """The length of the run in steps, rounded up so that no sample asked for is missing."""
    given = {n: getattr(self, n) for n in ("steps", "samples", "epochs")
             if getattr(self, n) is not None}
    if len(given) != 1:
      raise UserError(
          "The length of the run is one of steps, samples and epochs; given are "
          f"{', '.join(f'{n}={v}' for n, v in given.items()) or 'none'}. Set exactly one, as in "
          "--config.train.steps=1000 (and the others to None, as in --config.train.epochs=None).")
    samples = (self.epochs or 0) * examples
    if self.samples is not None:
      samples = count(self.samples, examples)
    steps = self.steps if self.steps is not None else -int(-samples // batch_size)
    if steps < 1:
      raise UserError(f"A run of {steps} steps does nothing; {given} is too little.")
    return steps


def experiment(*, data: ConfigDict, model: ConfigDict, objective: ConfigDict,
               optimizer: ConfigDict, train: ConfigDict, mesh: ConfigDict | None = None,
               augment: dict[str, ConfigDict] | None = None,
               evaluators: dict[str, ConfigDict] | None = None,
               final_evaluators: dict[str, ConfigDict] | None = None,
               seed: int = 0) -> ConfigDict:
  """The config of a training run.

  Args:
    data: a call of `Data`.
    model: a call of `TwoTowers`.
    objective, optimizer: calls of what their packages hold.
    train: a call of `Training`.
    mesh: a call of `sharding.make_mesh`; data-parallel over all devices by default.
    augment: what happens to batch entries on the device, calls by the entry's name.
    evaluators: asked every `train.eval_every` steps, calls by the name that their metrics get.
    final_evaluators: asked at the end of the run.
    seed: of the data order, the initial parameters, and everything random on the way.
  """
  return ConfigDict(dict(
      seed=seed, data=data, augment=augment or {}, model=model, objective=objective,
      optimizer=optimizer, mesh=mesh or call(make_mesh), train=train,
      evaluators=evaluators or {}, final_evaluators=final_evaluators or {}))


def check_sections(config: ConfigDict) -> None:
  """Raises unless a config has every section of a training run."""
  missing = [name for name in inspect.signature(experiment).parameters if name not in config]
  if missing:
    raise UserError(
        f"This config has no {', '.join(missing)}: it does not describe a training run, as what "
        "clip_jax.experiment.experiment(...) returns does. A suite of evaluators goes to python -m "
        "clip_jax.evaluate --suite=FILE.")


def build_all(specs: ConfigDict) -> dict[str, Any]:
  """Builds each of a dict of calls."""
  return {name: build(spec) for name, spec in specs.items()}


def check_inputs(objective: Objective, outputs: tuple[str, ...],
                 augmented: Collection[str] = ()) -> None:
  """Raises unless the pipeline makes every batch entry that the objective reads.

  Args:
    outputs: what the pipeline makes.
    augmented: entries that are augmented on the device; the objective must read them.
  """
  missing = [name for name in objective.inputs if name not in outputs]
  if missing:
    raise UserError(
        f"{type(objective).__name__} reads {', '.join(objective.inputs)} and the pipeline makes "
        f"{', '.join(outputs)}. Add to config.data.views.images: {', '.join(missing)}.")
  unread = [name for name in augmented if name not in objective.inputs]
  if unread:
    raise UserError(
        f"config.augment has {', '.join(unread)}, and {type(objective).__name__} reads only "
        f"{', '.join(objective.inputs)}. Augment one of these, or leave it out.")
