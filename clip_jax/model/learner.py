"""The learner: a model and the objective that trains it, real or abstract."""

from typing import Any

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.interfaces import Model, Objective, TextTower, check_part
from clip_jax.model.two_towers import TwoTowers


class Learner(nnx.Module):
  """A model and its objective: everything that is trained."""

  def __init__(self, model: TwoTowers, objective: Objective):
    self.model, self.objective = model, objective


def split_state(module: nnx.Module) -> tuple[Any, dict, dict]:
  """Splits a module into (graphdef, params, stats): structure, trained arrays and other arrays.

  Both sets of arrays are plain nested dicts.
  """
  graphdef, params, stats = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def param_bounds(module: nnx.Module) -> dict:
  """Collects the bounds that parameters declare with `nnx.Param(..., at_least=, at_most=)`.

  Returns:
    (low, high) of every trained array, infinite where there is no bound; a tree like the params of
    `split_state`.
  """
  _, params, _ = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

  def bounds(variable):
    metadata = variable.get_metadata()
    return metadata.get("at_least", -np.inf), metadata.get("at_most", np.inf)

  is_variable = lambda v: isinstance(v, nnx.Variable)
  return nnx.to_pure_dict(jax.tree.map(bounds, params, is_leaf=is_variable))


def check_tokens(text: TextTower, tokenizer: Any) -> None:
  """Raises `UserError` unless the text tower accepts the tokenizer's output."""
  if tokenizer.context_length != text.context_length:
    raise UserError(
      f"The tokenizer's context_length is {tokenizer.context_length}, but the text tower's is "
      f"{text.context_length}. Set both to the same value."
    )
  if tokenizer.vocab_size > text.vocab_size:
    raise UserError(
      f"The tokenizer's vocabulary has {tokenizer.vocab_size} tokens, but the text "
      f"tower's vocab_size is {text.vocab_size}. Set it to at least {tokenizer.vocab_size}."
    )


def make_learner(config: ConfigDict, key: jax.Array) -> Learner:
  """Builds the model and the objective of a config, with initial values.

  Raises:
    UserError: one of them lacks something that its protocol in `clip_jax.interfaces` asks for.
  """
  rngs = nnx.Rngs(key)
  model = build(config.model, rngs=rngs)
  check_part(model, Model, "config.model")
  objective = build(config.objective, model=model, rngs=rngs)
  check_part(objective, Objective, "config.objective")
  return Learner(model, objective)


def abstract_learner(config: ConfigDict) -> Learner:
  """Builds the learner of a config with ShapeDtypeStructs in place of arrays."""
  return jax.eval_shape(lambda key: make_learner(config, key), jax.random.key(0))
