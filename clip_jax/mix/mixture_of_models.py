"""Weighted means of models of the same architecture."""

from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.config import to_saved
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.model.learner import make_learner, split_state
from clip_jax.model.transfer import check_same_arrays
from clip_jax.objectives.base import set_logit
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained.model_bundle import ModelBundle
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.state import TrainState


def check_mixable(bundles: Sequence[ModelBundle], names: Sequence[str]) -> None:
  """Raises `UserError` unless all models have the same arrays and the same tokens."""
  shapes = [
    {n: tuple(np.shape(x)) for n, x in leaves_by_name([one.params, one.stats]).items()}
    for one in bundles
  ]
  for other, name in zip(shapes[1:], names[1:]):
    check_same_arrays(
      other,
      shapes[0],
      name,
      hint=f"Only models of the same architecture as {names[0]} can be mixed with it.",
    )
  texts = ["a photo of a cat", "two red flags"]
  tokens = [one.tokenizer(texts) for one in bundles]
  for ids, name in zip(tokens[1:], names[1:]):
    if not np.array_equal(tokens[0], ids):
      raise UserError(f"{name} and {names[0]} have different tokenizers, so a mix has no meaning.")


def mixed(bundles: Sequence[ModelBundle], weights: Sequence[float]) -> ModelBundle:
  """Returns the weighted mean of models, with the preprocessing and tokenizer of the last one.

  Parameters, BatchNorm averages, the logarithm of the logit scale and the bias are averaged.

  Args:
    bundles: models with the same arrays.
    weights: one per model; they sum to 1.

  Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (two models) and "Model
  soups" (more).
  """
  mean = lambda *arrays: sum(w * np.asarray(x, np.float32) for w, x in zip(weights, arrays))
  average = lambda values: sum(w * x for w, x in zip(weights, values))
  return dataclasses.replace(
    bundles[-1],
    params=jax.tree.map(mean, *(one.params for one in bundles)),
    stats=jax.tree.map(mean, *(one.stats for one in bundles)),
    scale=math.exp(average(math.log(one.scale) for one in bundles)),
    bias=average(one.bias for one in bundles),
  )


def write_run(saved: ModelBundle, config: ConfigDict, folder: Path) -> None:
  """Writes a model as the workdir of a run, with a checkpoint of step 0 that `load` reads.

  Args:
    saved: the model.
    config: the config of a run of the same model.
    folder: the workdir; it must not have checkpoints yet.

  Raises:
    UserError: the folder has checkpoints.
  """
  config = config.copy_and_resolve_references()
  config.train.update(init_from=None, init_logit=False, evaluate_ema=False)
  learner = make_learner(config, jax.random.key(0))
  set_logit(learner.objective, saved.scale, saved.bias)
  _, params, stats = split_state(learner)
  params, stats = {**params, "model": saved.params}, {**stats, "model": saved.stats}
  params, stats = jax.tree.map(jnp.asarray, (params, stats))
  state = TrainState(
    step=jnp.int32(0), params=params, stats=stats, opt_state=(), skipped=jnp.int32(0)
  )
  checkpoints = Checkpoints(folder / "checkpoints")
  if checkpoints.latest() is not None:
    raise UserError(f"--out={folder} has checkpoints already. Choose another folder.")
  folder.mkdir(parents=True, exist_ok=True)
  write_atomically(folder / "config.json", to_saved(config) + "\n")
  checkpoints.save(0, state, config)
  checkpoints.close()
