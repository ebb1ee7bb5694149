"""The train state before the first step: fresh, or from a trained model."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import config as config_lib
from clip_jax.data.selection import selection_chain
from clip_jax.data.sources.with_embeddings import WithEmbeddings
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from clip_jax.inference.similarity import model_fingerprint
from clip_jax.model.frozen import split_frozen
from clip_jax.model.learner import split_state
from clip_jax.model.transfer import adapt_params, overlay
from clip_jax.objectives.base import set_logit
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained.model_bundle import abstract_model
from clip_jax.training.setup import TrainSetup


def init_from(setup: TrainSetup, state: Any) -> Any:
  """Returns the initial train state with the parameters of the model at `train.init_from`.

  With `train.init_logit`, the objective starts from that model's logit scale and bias.

  Raises:
    UserError: there is no such model, it differs in more than image size and context length, or
      the run reads stored features of another model.
  """
  # The user starts this config, so the modules that it names are trusted.
  saved = load_bundle(setup.training.init_from, trust=config_lib.modules(setup.config))
  trained = abstract_model(saved.model)
  _check_embedded(setup, saved, trained)
  grids = (getattr(model.image, "grid", None) for model in (trained, setup.learner.model))
  params = adapt_params(saved.params, state.params["model"], *grids, method=saved.position_method)
  # Take over BatchNorm averages, but not fixed position embeddings, which fit one image size only.
  averages = leaves_by_name(nnx.to_pure_dict(nnx.state(trained, nnx.BatchStat)))
  stats = {f"model/{n}": x for n, x in leaves_by_name(saved.stats).items() if n in averages}
  own = state.params
  if setup.training.init_logit:
    learner = nnx.merge(setup.graphdef, state.params, state.stats)
    set_logit(learner.objective, saved.scale, saved.bias)
    own = split_state(learner)[1]
  on_device = lambda x, like: jax.device_put(x, like.sharding)
  params = jax.tree.map(on_device, {**own, "model": params}, state.params)
  average = split_frozen(params, setup.frozen)[0] if state.ema else {}
  opt_state = state.opt_state
  if setup.optimizer.average is not None:  # Its state has a copy of the parameters.
    opt_state = jax.tree.map(on_device, setup.optimizer.init(params), opt_state)
  return dataclasses.replace(
    state,
    params=params,
    opt_state=opt_state,
    ema=jax.tree.map(jnp.copy, average),  # The step donates both.
    stats=jax.tree.map(on_device, overlay(state.stats, stats), state.stats),
  )


def _check_embedded(setup, saved, trained):
  """Raises `UserError` if stored features that the run reads are not those of the saved model."""
  for source in selection_chain(setup.data.source):
    if not isinstance(source, WithEmbeddings):
      continue
    model = nnx.merge(split_state(trained)[0], saved.params, saved.stats)
    for entry, tower in (("image", "image"), ("tokens", "text")):
      shape = setup.batch.get(entry)
      if shape is None or shape.ndim != 2 or not jnp.issubdtype(shape.dtype, jnp.floating):
        continue
      wanted = source.store.manifest["model"].get(f"{tower}_tower")
      if model_fingerprint(getattr(model, tower)) != wanted:
        raise UserError(
          f"The stored features in {source.store.path} are of another {tower} tower than that of "
          f"{setup.training.init_from}: they were made with "
          f"{source.store.manifest['model'].get('from')}. Start from that model, or rerun clip-jax "
          "embed."
        )
