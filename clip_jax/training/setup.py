"""Building and checking a config, before anything runs on a device."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.cli.formatting import table
from clip_jax.config import build
from clip_jax.costs import model_compute
from clip_jax.data.pipeline import Examples
from clip_jax.model import learner as learner_lib
from clip_jax.model.learner import abstract_learner, make_learner
from clip_jax.nn.target import resolve_dtype
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.experiment import build_all, check_inputs, check_sections
from clip_jax.training.optim import with_bounds


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """A config after building and checking, with nothing on a device yet.

  Attributes:
    config: the config it was built from.
    data, training, evaluators, final_evaluators, augment: the built sections of the config.
    mesh: the config's mesh, or the one passed to `prepare`.
    make: (seed) -> initial train state; traceable.
    graphdef: structure of the learner.
    learner: the abstract learner, with ShapeDtypeStructs in place of arrays.
    optimizer: the optimizer, which also keeps learned scalars within their bounds.
    state: the abstract train state: shapes, dtypes and shardings.
    total_steps: length of the run in steps.
  """

  config: ConfigDict
  data: Any
  training: Any
  evaluators: dict[str, Any]
  final_evaluators: dict[str, Any]
  augment: dict[str, Any]
  mesh: jax.sharding.Mesh
  make: Callable
  graphdef: Any
  learner: learner_lib.Learner
  optimizer: Any
  state: state_lib.TrainState
  total_steps: int

  @property
  def train_step(self) -> jax.stages.Wrapped:
    """The jitted train step, which donates its input state."""
    step = step_lib.make_train_step(
      self.graphdef, self.optimizer, skip_nonfinite=self.training.skip_nonfinite, **self._options
    )
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(shardings, placement.batch_sharding(self.mesh)),
      out_shardings=(shardings, placement.replicated_sharding(self.mesh)),
    )

  @property
  def diagnosis(self) -> Callable:
    """The jitted function (state, batch) -> loss and gradient norms by part, for debugging."""
    return jax.jit(
      step_lib.make_diagnosis(self.graphdef, **self._options),
      out_shardings=placement.replicated_sharding(self.mesh),
    )

  @property
  def _options(self):
    return dict(
      seed=self.config.seed, augment=self.augment, microbatches=self.training.microbatches
    )

  @property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the batch entries that the step reads."""
    example = Examples(self.data.source, self.data.views, seed=self.config.seed)[0]
    on_rows = placement.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(
        (self.data.batch_size, *np.shape(example[name])),
        np.asarray(example[name]).dtype,
        sharding=on_rows,
      )
      for name in self.learner.objective.inputs
    }

  @property
  def dtypes(self) -> dict[str, str]:
    """Compute dtype of each tower; "float32" if the tower has no `dtype` argument."""
    with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
      return {
        name: resolve_dtype(getattr(self.config.model[name], "dtype", "float32"))
        for name in ("image", "text")
      }

  @functools.cached_property
  def compute(self) -> model_compute.ModelCompute:
    """Compute cost of one example."""
    return model_compute.count_compute(self.learner, self.batch)


def build_setup(config: ConfigDict, *, mesh: jax.sharding.Mesh | None = None) -> TrainSetup:
  """Builds a config and checks all that can be checked without running anything on a device.

  Args:
    config: config of a training run.
    mesh: replaces the config's mesh; its devices need not be attached.

  Raises:
    UserError: parts do not fit each other or the devices; the message names them and what to set.
  """
  check_sections(config)
  data, training = build(config.data), build(config.train)
  mesh = build(config.mesh) if mesh is None else mesh
  mesh_lib.check_divisible(
    data.batch_size, devices=mesh_lib.batch_shards(mesh), microbatches=training.microbatches
  )
  total_steps = training.total_steps(batch_size=data.batch_size, examples=len(data.source))

  # Towers read the target platform from the current mesh.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    learner = abstract_learner(config)
  check_inputs(learner.objective, data.views.outputs, config.augment)
  learner_lib.check_tokens(learner.model.text, data.views.tokenizer)
  graphdef = learner_lib.split_state(learner)[0]
  optimizer = with_bounds(
    build(config.optimizer, total_steps=total_steps), learner_lib.param_bounds(learner)
  )

  def make(seed):
    return state_lib.init_train_state(make_learner(config, jax.random.key(seed)), optimizer)

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    shapes = jax.eval_shape(make, 0)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    partition.state_shardings(shapes, mesh),
  )
  return TrainSetup(
    config,
    data,
    training,
    build_all(config.evaluators),
    build_all(config.final_evaluators),
    build_all(config.augment),
    mesh,
    make,
    graphdef,
    learner,
    optimizer,
    state,
    total_steps,
  )


def sharding_table(parts: TrainSetup) -> str:
  """Returns a table of the sharding of each array of the train state and its bytes per device."""
  rows = partition.describe_shardings(parts.state)
  mesh = " x ".join(f"{axis}={n}" for axis, n in parts.mesh.shape.items())
  return (
    table(rows, header=("array", "shape", f"on mesh {mesh}", "bytes per device"))
    + f"\n\n{sum(row[-1] for row in rows):,} bytes per device in total; the whole state has "
    f"{sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.state)):,}."
  )
