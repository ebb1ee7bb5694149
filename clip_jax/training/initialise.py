"""The train state before the first step: fresh, or from a trained model."""

import dataclasses
from typing import Any

from flax import nnx
import jax

from clip_jax import config as config_lib
from clip_jax.inference.loading import load
from clip_jax.model.learner import split_state
from clip_jax.model.transfer import adapt_params, overlay
from clip_jax.training.setup import TrainSetup


def init_from(setup: TrainSetup, state: Any) -> Any:
  """Returns the initial train state with the parameters of the model at `train.init_from`.

  Raises:
    UserError: there is no such model, or it differs in more than image size and context length.
  """
  # The user starts this config, so the modules that it names are trusted.
  trained = load(setup.training.init_from, trust=config_lib.modules(setup.config)).model
  grids = (getattr(model.image, "grid", None) for model in (trained, setup.learner.model))
  params = adapt_params(split_state(trained)[1], state.params["model"], *grids)
  # Take over BatchNorm averages, but not fixed position embeddings, which fit one image size only.
  averages = nnx.to_pure_dict(nnx.state(trained, nnx.BatchStat))
  on_device = lambda x, like: jax.device_put(x, like.sharding)
  return dataclasses.replace(
    state,
    params=jax.tree.map(on_device, {**state.params, "model": params}, state.params),
    stats=jax.tree.map(on_device, overlay(state.stats, {"model": averages}), state.stats),
  )
