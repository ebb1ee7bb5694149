"""The sections of a training config, which is what a config file returns."""

from collections.abc import Collection, Mapping
import dataclasses
import inspect
from typing import Annotated, Any

from ml_collections.config_dict import ConfigDict

from clip_jax.cli.values import (
  FilePath,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Range,
  Seed,
  Where,
  check_arguments,
  checked,
)
from clip_jax.config import build, call, check_values
from clip_jax.data.subset import Count, Subset, count
from clip_jax.errors import UserError
from clip_jax.interfaces import Objective, Source, Views, check_part
from clip_jax.parallel.mesh import make_mesh


@checked
@dataclasses.dataclass(frozen=True)
class Data:
  """The training data and how it is read.

  Attributes:
    source: the records; after construction, the subset of them that is used for training.
    views: converts a record into an example.
    batch_size: examples in the global batch, B.
    size: number of records to train on, as 10_000_000, "10M" or "10%"; None for all. `Subset`
      chooses them with seed 0 whatever the run's seed, so that smaller subsets are contained in
      larger ones.
    threads: number of prefetching threads per process.
    workers: number of worker processes per host; 0 prepares the batches in the training process.
  """

  source: Source
  views: Views
  batch_size: PositiveInt = 256
  size: Count | None = None
  threads: Annotated[int, Range(0, 1024)] = 16
  workers: Annotated[int, Range(0, 1024)] = 0

  def __post_init__(self) -> None:
    if self.size is not None:
      object.__setattr__(self, "source", Subset(self.source, self.size))


@checked
@dataclasses.dataclass(frozen=True)
class Training:
  """The length of a run, and how often it logs, evaluates and saves.

  Attributes:
    steps, samples, epochs: length of the run; set exactly one. samples may be a string such as
      "340M".
    init_from: trained model to initialise the parameters from, in any form that `clip_jax.load`
      accepts; the optimizer and the objective start afresh. Its image size and context length may
      differ. Ignored when the run resumes from its own checkpoint.
    init_logit: whether the objective also starts from the logit scale and bias of that model.
    microbatches: number of pieces that the batch is embedded in, one after the other; the gradient
      stays the same and less memory is used.
    log_every, eval_every, save_every: intervals in steps; 0 disables (the end of the run always
      evaluates and saves). Logged training metrics are means over the finite steps since the last
      line, but for the learning rate and the number of skipped steps.
    max_checkpoints: number of checkpoints to keep; older ones are deleted.
    wandb: Weights & Biases project to log to in addition.
    ema_decay: decay of an exponential moving average of the parameters, such as 0.999; None for no
      average.
    evaluate_ema: whether evaluations, `load` and exports use the average instead of the parameters.
    skip_nonfinite: number of steps that may be skipped over the whole run because their loss or
      gradient is not finite; the next such step stops the run.
  """

  steps: PositiveInt | None = None
  samples: Count | None = None
  epochs: PositiveFloat | None = None
  init_from: FilePath | None = None
  init_logit: bool = False
  microbatches: PositiveInt = 1
  log_every: NonNegativeInt = 50
  eval_every: NonNegativeInt = 0
  save_every: NonNegativeInt = 1000
  max_checkpoints: PositiveInt = 2
  wandb: str | None = None
  skip_nonfinite: NonNegativeInt = 0
  ema_decay: Annotated[float, Range(0, below=1)] | None = None
  evaluate_ema: bool = False

  def total_steps(self, *, batch_size: int, examples: int) -> int:
    """Returns the length of the run in steps, rounded up so that it covers every sample."""
    given = {
      n: getattr(self, n) for n in ("steps", "samples", "epochs") if getattr(self, n) is not None
    }
    if len(given) != 1:
      raise UserError(
        "The length of the run must be given as one of steps, samples and epochs, but given are "
        f"{', '.join(f'{n}={v}' for n, v in given.items()) or 'none'}. Set exactly one, as in "
        "--config.train.steps=1000, and the others to None, as in --config.train.epochs=None."
      )
    samples = self.total_samples(examples)
    steps = self.steps if samples is None else -int(-samples // batch_size)
    if not 1 <= steps < 2**31:  # Steps are counted in int32 on the devices.
      raise UserError(
        f"{next(iter(given))}={next(iter(given.values()))} makes a run of {steps:,} steps of "
        f"{batch_size:,} examples; expected 1 to {2**31 - 1:,}."
      )
    return steps

  def total_samples(self, examples: int) -> float | None:
    """Returns the length of the run in samples; None if it is given in steps."""
    if self.samples is not None:
      return count(self.samples, examples)
    return None if self.epochs is None else self.epochs * examples


def is_call(value: Any) -> bool:
  """Whether a config is a call, see `clip_jax.config.call`."""
  return isinstance(value, ConfigDict) and "fn" in value


Call = Annotated[ConfigDict, Where(is_call, "a call, as in call(Training, steps=1000)")]


def experiment(
  *,
  data: Call,
  model: Call,
  objective: Call,
  optimizer: Call,
  train: Call,
  mesh: Call | None = None,
  augment: Mapping[str, Call] | None = None,
  evaluators: Mapping[str, Call] | None = None,
  final_evaluators: Mapping[str, Call] | None = None,
  seed: Seed = 0,
) -> ConfigDict:
  """Returns the config of a training run.

  Args:
    data: a call of `Data`.
    model: a call of `TwoTowers`.
    objective: a call of an objective, such as `objectives.clip.Clip`.
    optimizer: a call of an optimizer, such as `optim.adamw`.
    train: a call of `Training`.
    mesh: a call of `parallel.make_mesh`; data-parallel over all devices by default.
    augment: on-device augmentations, as calls by the name of the batch entry.
    evaluators: evaluators to run every `train.eval_every` steps and at the end, as calls by the
      prefix of their metrics.
    final_evaluators: additional evaluators to run at the end.
    seed: seed of the data order, the initial parameters and all other randomness of the run.
  """
  return ConfigDict(
    dict(
      seed=seed,
      data=data,
      augment=augment or {},
      model=model,
      objective=objective,
      optimizer=optimizer,
      mesh=mesh or call(make_mesh),
      train=train,
      evaluators=evaluators or {},
      final_evaluators=final_evaluators or {},
    )
  )


def check_sections(config: ConfigDict) -> None:
  """Checks the sections of a training run, and the values of all calls in them.

  Raises:
    UserError: a section is missing, or a value is not what its argument expects.
  """
  absent = lambda name: name not in config or (config[name] is None and name != "seed")
  missing = [name for name in inspect.signature(experiment).parameters if absent(name)]
  if missing:
    raise UserError(
      f"This config has no {', '.join(missing)}, so it does not describe a training run. Make it "
      "with clip_jax.training.experiment(...). If it is a suite of evaluators, run clip-jax "
      "evaluate --suite=FILE."
    )
  sections = {
    name: dict(config[name])
    if isinstance(config[name], ConfigDict) and not is_call(config[name])
    else config[name]
    for name in inspect.signature(experiment).parameters
  }
  check_arguments(experiment, sections, "config")
  check_values(config, "config")


def build_all(specs: ConfigDict, protocol: type, section: str) -> dict[str, Any]:
  """Builds every call in a dict of calls, and checks that each is what its section holds.

  Args:
    specs: calls by name.
    protocol: the protocol in `clip_jax.interfaces` of all parts in this section.
    section: name of the section in the message of the `UserError`.
  """
  built = {}
  for name, spec in specs.items():
    built[name] = build(spec)
    check_part(built[name], protocol, f"{section}.{name}")
  return built


def check_inputs(
  objective: Objective, outputs: tuple[str, ...], augmented: Collection[str] = ()
) -> None:
  """Raises UserError unless the pipeline produces every batch entry that the objective reads.

  Args:
    objective: the objective to check; it may read "index" in addition to the outputs of the views.
    outputs: names of the batch entries that the views produce.
    augmented: names of the entries that are augmented on the device; the objective must read them.
  """
  if not objective.inputs:
    raise UserError(f"{type(objective).__name__} reads no batch entries. List some in its inputs.")
  missing = [name for name in objective.inputs if name not in (*outputs, "index")]
  if missing:
    raise UserError(
      f"{type(objective).__name__} reads {', '.join(objective.inputs)}, but the pipeline "
      f"produces only {', '.join(outputs)}. Add to config.data.views.images: "
      f"{', '.join(missing)}."
    )
  unread = [name for name in augmented if name not in objective.inputs or name == "index"]
  if unread:
    raise UserError(
      f"config.augment has {', '.join(unread)}, but {type(objective).__name__} reads only "
      f"{', '.join(objective.inputs)}. Augment one of these, or remove the entry."
    )
