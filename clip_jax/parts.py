"""Building and checking a config, before anything runs on a device."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax import compute as compute_lib, model as model_lib, sharding, step as step_lib
from clip_jax.config import build
from clip_jax.data.pipeline import Examples
from clip_jax.experiment import build_all, check_inputs, check_sections
from clip_jax.optim import kept_within
from clip_jax.report import table
from clip_jax.target import computed_in


@dataclasses.dataclass(frozen=True)
class Parts:
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
  learner: model_lib.Learner
  optimizer: Any
  state: step_lib.TrainState
  total_steps: int

  @property
  def train_step(self) -> jax.stages.Wrapped:
    """The jitted train step, which donates its input state."""
    step = step_lib.make_train_step(
        self.graphdef, self.optimizer, skip_nonfinite=self.training.skip_nonfinite,
        **self._options)
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(step, donate_argnums=0,
                   in_shardings=(shardings, sharding.rows(self.mesh)),
                   out_shardings=(shardings, sharding.replicated(self.mesh)))

  @property
  def diagnosis(self) -> Callable:
    """The jitted function (state, batch) -> loss and gradient norms by part, for debugging."""
    return jax.jit(step_lib.make_diagnosis(self.graphdef, **self._options),
                   out_shardings=sharding.replicated(self.mesh))

  @property
  def _options(self):
    return dict(seed=self.config.seed, augment=self.augment,
                microbatches=self.training.microbatches)

  @property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the batch entries that the step reads."""
    example = Examples(self.data.source, self.data.views, seed=self.config.seed)[0]
    on_rows = sharding.rows(self.mesh)
    return {name: jax.ShapeDtypeStruct((self.data.batch_size, *np.shape(example[name])),
                                       np.asarray(example[name]).dtype, sharding=on_rows)
            for name in self.learner.objective.inputs}

  @property
  def dtypes(self) -> dict[str, str]:
    """Compute dtype of each tower; "float32" if the tower has no `dtype` argument."""
    with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
      return {name: computed_in(getattr(self.config.model[name], "dtype", "float32"))
              for name in ("image", "text")}

  @functools.cached_property
  def compute(self) -> compute_lib.Compute:
    """Compute cost of one example."""
    return compute_lib.count(self.learner, self.batch)


def prepare(config: ConfigDict, *, mesh: jax.sharding.Mesh | None = None) -> Parts:
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
  sharding.check_divisible(data.batch_size, devices=sharding.batch_shards(mesh),
                           microbatches=training.microbatches)
  total_steps = training.total_steps(batch_size=data.batch_size, examples=len(data.source))

  # Towers read the target platform from the current mesh.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    learner = abstract_learner(config)
  check_inputs(learner.objective, data.views.outputs, config.augment)
  model_lib.check_tokens(learner.model.text, data.views.tokenizer)
  graphdef = model_lib.split(learner)[0]
  optimizer = kept_within(build(config.optimizer, total_steps=total_steps),
                          model_lib.bounds(learner))

  def make(seed):
    return step_lib.create(make_learner(config, jax.random.key(seed)), optimizer)

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    shapes = jax.eval_shape(make, 0)
  state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                       shapes, sharding.state_shardings(shapes, mesh))
  return Parts(config, data, training, build_all(config.evaluators),
               build_all(config.final_evaluators), build_all(config.augment), mesh, make,
               graphdef, learner, optimizer, state, total_steps)


def explanation(parts: Parts) -> str:
  """Returns a table of the sharding of each array of the train state and its bytes per device."""
  rows = sharding.explained(parts.state)
  mesh = " x ".join(f"{axis}={n}" for axis, n in parts.mesh.shape.items())
  return (table(rows, header=("array", "shape", f"on mesh {mesh}", "bytes per device"))
          + f"\n\n{sum(row[-1] for row in rows):,} bytes per device in total; the whole state has "
          f"{sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.state)):,}.")


def make_learner(config: ConfigDict, key: jax.Array) -> model_lib.Learner:
  """Builds the model and the objective of a config, with initial values."""
  rngs = nnx.Rngs(key)
  model = build(config.model, rngs=rngs)
  return model_lib.Learner(model, build(config.objective, model=model, rngs=rngs))


def abstract_learner(config: ConfigDict) -> model_lib.Learner:
  """Builds the learner of a config with ShapeDtypeStructs in place of arrays."""
  return jax.eval_shape(lambda key: make_learner(config, key), jax.random.key(0))
