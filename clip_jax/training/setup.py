"""Building and checking a config, before anything runs on a device; and compiling its step."""

from collections.abc import Callable
import copy
import dataclasses
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.cli.formatting import table
from clip_jax.config import build, calls
from clip_jax.costs.model_compute import ModelCompute, count_compute
from clip_jax.data.pipeline import Examples
from clip_jax.errors import UserError
from clip_jax.evaluators.results import check_needs
from clip_jax.interfaces import DeviceAugment, Evaluator, Model, Optimizer, Views, check_part
from clip_jax.model import learner as learner_lib
from clip_jax.model.frozen import Frozen, mark_frozen
from clip_jax.model.learner import abstract_learner, make_learner
from clip_jax.nn.target import resolve_dtype
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.experiment import Data, Training, build_all, check_inputs, check_sections
from clip_jax.training.history import History
from clip_jax.training.optim import with_bounds
from clip_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """A config after building and checking, with nothing on a device yet.

  Attributes:
    config: the config it was built from.
    data, training, evaluators, final_evaluators, augment: the built sections of the config.
    mesh: the config's mesh, or the one passed to `build_setup`.
    graphdef: structure of the learner.
    learner: the abstract learner, with ShapeDtypeStructs in place of arrays.
    optimizer: the optimizer, which also keeps learned scalars within their bounds.
    init_state: (seed) -> initial train state; traceable.
    state: the abstract train state: shapes, dtypes and shardings.
    batch: the batch entries that the step reads: shapes, dtypes and shardings.
    frozen: the parameters that are not trained.
    total_steps: length of the run in steps.
    history: batch sizes of the run; one until it resumes with another one.
    dtypes: compute dtype of each tower; "float32" if the tower has no `dtype` argument.
    compute: compute cost of one example.
  """

  config: ConfigDict
  data: Data
  training: Training
  evaluators: dict[str, Evaluator]
  final_evaluators: dict[str, Evaluator]
  augment: dict[str, DeviceAugment]
  mesh: jax.sharding.Mesh
  graphdef: Any
  learner: learner_lib.Learner
  optimizer: Any
  init_state: Callable[[int], TrainState]
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]
  frozen: Frozen
  total_steps: int
  history: History
  dtypes: dict[str, str]
  compute: ModelCompute


def build_setup(config: ConfigDict, *, mesh: jax.sharding.Mesh | None = None) -> TrainSetup:
  """Builds a config and checks all that can be checked without running anything on a device.

  Args:
    config: config of a training run.
    mesh: replaces the config's mesh; its devices need not be attached.

  Raises:
    UserError: a part lacks something that its protocol asks for, or parts do not fit each other or
      the devices; the message names them and what to set.
  """
  check_sections(config)
  data, training = build(config.data), build(config.train)
  config = with_examples(config, len(data.source))
  mesh = build(config.mesh) if mesh is None else mesh
  mesh_lib.check_divisible(
    data.batch_size, devices=mesh_lib.batch_shards(mesh), microbatches=training.microbatches
  )
  total_steps = training.total_steps(batch_size=data.batch_size, examples=len(data.source))

  # Towers read the target platform from the current mesh.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    learner = abstract_learner(config)
    dtypes = {
      name: getattr(getattr(learner.model, name), "dtype", None)
      or resolve_dtype(getattr(config.model[name], "dtype", "float32"))
      for name in ("image", "text")
    }
  check_selection(learner.objective, data.batch_size, mesh, training.microbatches)
  check_inputs(learner.objective, data.views.outputs, config.augment)
  learner_lib.check_tokens(learner.model.text, data.views.tokenizer)
  check_preprocess(data.views, learner.model)
  if training.init_logit and not training.init_from:
    raise UserError("train.init_logit needs a trained model. Set --config.train.init_from=MODEL.")
  optimizer = make_optimizer(config, learner, total_steps)
  averages = check_average(training, optimizer)
  params = learner_lib.split_state(learner)[1]
  frozen = optimizer.frozen(params) if optimizer.frozen else {}
  within = {n.removeprefix("model/"): k for n, k in frozen.items() if n.startswith("model/")}
  mark_frozen(learner.model, params["model"], within)

  def init_state(seed):
    learner = make_learner(config, jax.random.key(seed))
    return state_lib.init_train_state(learner, optimizer, ema=averages, frozen=frozen)

  evaluators, final_evaluators = _build_evaluators(config)
  batch = abstract_batch(data, learner.objective.inputs, mesh, config.seed)
  check_stored_features(batch, params, frozen, training)
  compute = count_compute(learner, batch, frozen)
  return TrainSetup(
    config=config,
    data=data,
    training=training,
    evaluators=evaluators,
    final_evaluators=final_evaluators,
    augment=build_all(config.augment, DeviceAugment, "config.augment"),
    mesh=mesh,
    graphdef=learner_lib.split_state(learner)[0],
    learner=learner,
    optimizer=optimizer,
    init_state=init_state,
    state=abstract_state(init_state, mesh),
    batch=batch,
    frozen=frozen,
    total_steps=total_steps,
    history=History.new(data.batch_size, compute.flops),
    dtypes=dtypes,
    compute=compute,
  )


def with_examples(config: ConfigDict, examples: int) -> ConfigDict:
  """Returns a config whose objectives know the number of records that they train on.

  Objectives that keep state for every record have an argument `examples`. None is replaced in a
  copy, so that the saved config has the number, and readers of a run need not have its data.
  """
  unknown = lambda spec: "examples" in spec and spec.examples is None
  if not any(unknown(spec) for spec in calls(config.objective)):
    return config
  config = copy.deepcopy(config)
  with config.ignore_type(), config.unlocked():
    for spec in filter(unknown, calls(config.objective)):
      spec.examples = examples
  return config


def _build_evaluators(config):
  """Builds the evaluators and the final ones, and checks that they read metrics that exist."""
  evaluators, final_evaluators = (
    build_all(config[section], Evaluator, f"config.{section}")
    for section in ("evaluators", "final_evaluators")
  )
  check_needs(evaluators)
  check_needs({**evaluators, **final_evaluators})
  return evaluators, final_evaluators


def make_optimizer(config: ConfigDict, learner: learner_lib.Learner, total_steps: int) -> Any:
  """Builds the optimizer for a run of this length, which also keeps scalars within their bounds."""
  optimizer = build(config.optimizer, total_steps=total_steps)
  check_part(optimizer, Optimizer, "config.optimizer")
  # Patterns are checked, and become factors of the learning rate, when a state is made.
  jax.eval_shape(optimizer.init, learner_lib.split_state(learner)[1])
  return with_bounds(optimizer, learner_lib.param_bounds(learner))


def check_selection(
  objective: Any, batch_size: int, mesh: jax.sharding.Mesh, microbatches: int
) -> None:
  """Raises `UserError` unless the rows that an objective selects can be divided as a batch is."""
  if not hasattr(objective, "select"):
    return
  rows, devices = objective.selected_rows(batch_size), mesh_lib.batch_shards(mesh)
  if rows % (devices * microbatches):
    raise UserError(
      f"The objective selects {rows} of the {batch_size} rows of a batch, which {devices} devices "
      f"x {microbatches} microbatches do not divide. Set --config.objective.fraction or "
      "--config.data.batch_size so that they do."
    )


def check_average(training: Training, optimizer: Any) -> bool:
  """Returns whether the train state has an average of the parameters.

  Raises:
    UserError: there is no average to evaluate, two of them, or the optimizer's is not evaluated.
  """
  own, decay = optimizer.average is not None, training.ema_decay
  if training.evaluate_ema and decay is None and not own:
    raise UserError(
      "train.evaluate_ema needs a moving average. Set --config.train.ema_decay=0.999."
    )
  if own and decay is not None:
    raise UserError(
      f"The optimizer averages the parameters itself, so there is no second average with "
      f"train.ema_decay={decay}. Set --config.train.ema_decay=None."
    )
  if own and not training.evaluate_ema:
    raise UserError(
      "The optimizer trains at another point than the average that it evaluates. Set "
      "--config.train.evaluate_ema=True, so that evaluations, load and exports use the average."
    )
  return own or decay is not None


def with_history(setup: TrainSetup, history: History) -> TrainSetup:
  """Returns the setup of a run that resumes, whose length in samples counts those of its history.

  The schedule of the learning rate is that of a run of the resulting number of steps.
  """
  samples = setup.training.total_samples(len(setup.data.source))
  total_steps = setup.total_steps if samples is None else history.steps_for(samples)
  optimizer = setup.optimizer
  if total_steps != setup.total_steps:
    optimizer = make_optimizer(setup.config, setup.learner, total_steps)
  return dataclasses.replace(setup, history=history, total_steps=total_steps, optimizer=optimizer)


def check_preprocess(views: Views, model: Model) -> None:
  """Raises `UserError` unless the views' preprocessing makes images of the model's size."""
  size = getattr(getattr(views, "preprocess", None), "size", None)
  if size is not None and tuple(size) != tuple(model.image.image_size):
    height, width = model.image.image_size
    raise UserError(
      f"config.data.views.preprocess makes images of {size[0]} x {size[1]}, but the image tower "
      f"takes {height} x {width}. Set --config.data.views.preprocess.size, the size of the crop in "
      "config.data.views.images and --config.model.image.image_size to the same value."
    )


def check_stored_features(
  batch: dict[str, jax.ShapeDtypeStruct], params: dict, frozen: Frozen, training: Training
) -> None:
  """Raises `UserError` unless a tower whose stored features are read is frozen and trained.

  Args:
    batch: shapes and dtypes of the batch entries.
    params: the learner's parameters, or their shapes.
    frozen: the parameters that are not trained.
    training: settings of the run.
  """
  for entry, tower in (("image", "image"), ("tokens", "text")):
    if entry not in batch or not np.issubdtype(batch[entry].dtype, np.floating):
      continue
    if batch[entry].ndim != 2:
      continue
    names = [n for n in leaves_by_name(params) if n.startswith(f"model/{tower}/")]
    if any(frozen.get(name, 0) is not None for name in names):
      raise UserError(
        f"The run reads stored features of the {tower} tower, which it cannot train. Freeze the "
        f"tower with freeze_params=('model/{tower}/.*',) in the optimizer."
      )
    if not training.init_from:
      raise UserError(
        f"The run reads stored features of the {tower} tower, but has no trained tower. Set "
        "--config.train.init_from to the model that made them."
      )


def abstract_state(init_state: Callable[[int], TrainState], mesh: jax.sharding.Mesh) -> TrainState:
  """Returns shapes, dtypes and shardings of the train state that `init_state` makes."""
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    shapes = jax.eval_shape(init_state, 0)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    partition.state_shardings(shapes, mesh),
  )


def abstract_batch(
  data: Data, inputs: tuple[str, ...], mesh: jax.sharding.Mesh, seed: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, dtypes and shardings of batch entries, from the first example of the run.

  Raises:
    UserError: the example lacks one of the entries that the views declare.
  """
  example = Examples(data.source, data.views, seed=seed)[0]
  missing = [name for name in inputs if name not in example]
  if missing:
    raise UserError(
      f"config.data.views declares the outputs {', '.join(data.views.outputs)}, but its first "
      f"example has no {', '.join(missing)}. Return all outputs, or declare fewer."
    )
  dtype = lambda name: (
    index_dtype(len(data.source)) if name == "index" else np.asarray(example[name]).dtype
  )
  return {
    name: jax.ShapeDtypeStruct(
      (data.batch_size, *np.shape(example[name])),
      dtype(name),
      sharding=placement.batch_sharding(mesh),
    )
    for name in inputs
  }


def index_dtype(records: int) -> np.dtype:
  """Returns the dtype of record indices on the devices: int32 if that is enough, or int64.

  Raises:
    UserError: int64 is needed and 64-bit types are disabled in JAX.
  """
  if records <= 2**31:
    return np.dtype(np.int32)
  if jax.dtypes.canonicalize_dtype(np.int64) != np.int64:
    raise UserError(
      f"The objective reads the index of each record, and {records:,} indices need 64 bits, which "
      "JAX disables by default. Set JAX_ENABLE_X64=1, or train on fewer records with "
      "--config.data.size."
    )
  return np.dtype(np.int64)


def initial_state(setup: TrainSetup) -> TrainState:
  """Initialises the train state on the devices of `setup.mesh`, which must be the current mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, setup.state)
  # On a CPU, level 1 compiles in half the time of the default, 3, and gives the same numbers.
  plain = getattr(jax.config, "jax_disable_most_optimizations", False)
  quick = jax.default_backend() == "cpu" and not plain
  init = jax.jit(
    setup.init_state,
    static_argnums=0,
    out_shardings=shardings,
    compiler_options={"xla_backend_optimization_level": 1} if quick else None,
  )
  return init(setup.config.seed)


def jit_train_step(setup: TrainSetup) -> jax.stages.Wrapped:
  """Returns the jitted train step, to trace or lower; each call of it makes a new one.

  The step donates its input state.
  """
  step = step_lib.make_train_step(
    setup.graphdef,
    setup.optimizer,
    skip_nonfinite=setup.training.skip_nonfinite,
    ema_decay=setup.training.ema_decay,
    **_gradient_options(setup),
  )
  shardings = jax.tree.map(lambda x: x.sharding, setup.state)
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, placement.batch_sharding(setup.mesh)),
    out_shardings=(shardings, placement.replicated_sharding(setup.mesh)),
  )


def compile_train_step(setup: TrainSetup) -> jax.stages.Compiled:
  """Compiles the train step, (state, batch) -> (next state, metrics), for `setup.mesh`.

  Call it once per run, with `setup.mesh` as the current mesh. The step donates its input state.
  """
  return jit_train_step(setup).lower(setup.state, setup.batch).compile()


def jit_diagnosis(setup: TrainSetup) -> Callable:
  """Returns the jitted function (state, batch) -> loss and gradient norms by part."""
  return jax.jit(
    step_lib.make_diagnosis(setup.graphdef, **_gradient_options(setup)),
    out_shardings=placement.replicated_sharding(setup.mesh),
  )


def _gradient_options(setup):
  return dict(
    seed=setup.config.seed,
    augment=setup.augment,
    microbatches=setup.training.microbatches,
    frozen=setup.frozen,
  )


def sharding_table(setup: TrainSetup) -> str:
  """Returns a table of the sharding of each array of the train state and its bytes per device."""
  rows = partition.describe_shardings(setup.state)
  mesh = " x ".join(f"{axis}={n}" for axis, n in setup.mesh.shape.items())
  return (
    table(rows, header=("array", "shape", f"on mesh {mesh}", "bytes per device"))
    + f"\n\n{sum(row[-1] for row in rows):,} bytes per device in total; the whole state has "
    f"{sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(setup.state)):,}."
  )
