"""The train state."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from clip_jax.model.frozen import Frozen, split_frozen
from clip_jax.model.learner import Learner, split_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that changes from step to step; saved in full by every checkpoint.

  Attributes:
    step: int32 [], steps made so far, including skipped ones within the allowance.
    params: trained variables, float32, as a plain nested dict {"model": ..., "objective": ...}.
    stats: variables that are not trained: those that the forward pass updates (BatchNorm averages)
      and fixed arrays; empty for a ViT with learned position embeddings and a plain objective.
    opt_state: state of the optimizer.
    skipped: int32 [], steps that were skipped because the loss or a gradient was not finite.
    ema: moving average of the trained parameters; empty unless `train.ema_decay` is set or the
      optimizer averages them.
  """

  step: jax.Array
  params: dict
  stats: dict
  opt_state: optax.OptState
  skipped: jax.Array
  ema: dict = dataclasses.field(default_factory=dict)


def init_train_state(
  learner: Learner,
  optimizer: optax.GradientTransformation,
  *,
  ema: bool = False,
  frozen: Frozen | None = None,
) -> TrainState:
  """Returns the initial train state; traceable, so that it can be created sharded or abstract.

  Args:
    learner: the learner.
    optimizer: the optimizer.
    ema: whether the state has a moving average of the parameters.
    frozen: parameters that are not trained, which the average leaves out.
  """
  _, params, stats = split_state(learner)
  average = split_frozen(params, frozen or {})[0] if ema else {}
  return TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(0), average)
