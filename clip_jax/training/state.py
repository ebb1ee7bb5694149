"""The train state."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

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
  """

  step: jax.Array
  params: dict
  stats: dict
  opt_state: optax.OptState
  skipped: jax.Array


def init_train_state(learner: Learner, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the initial train state; traceable, so that it can be created sharded or abstract."""
  _, params, stats = split_state(learner)
  return TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(0))
