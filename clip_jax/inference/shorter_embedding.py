"""Models whose embeddings are cut to their first entries, as Matryoshka trains them to be."""

import copy
import dataclasses
from typing import Any

from clip_jax.errors import UserError
from clip_jax.pretrained.model_bundle import ModelBundle

_SIDES = ("image_projection", "text_projection")


def with_embed_dim(saved: ModelBundle, embed_dim: int) -> ModelBundle:
  """Returns a model whose projections give only the first `embed_dim` entries, of unit length.

  Raises:
    UserError: the model's embeddings are not longer, or a tower has no projection to cut.
  """
  full = saved.model.embed_dim
  if not 1 <= embed_dim <= full:
    raise UserError(
      f"embed_dim={embed_dim} is not between 1 and {full}, the length of the model's embeddings."
    )
  for side in _SIDES:
    if saved.model.get(side, "linear") == "none" and embed_dim < full:
      raise UserError(
        f"The model has {side}='none', so there is no matrix to cut to embed_dim={embed_dim}. Load "
        f"it without embed_dim, and normalise the first {embed_dim} entries of its vectors."
      )
  if embed_dim == full:
    return saved
  config = copy.deepcopy(saved.model)
  config.embed_dim = embed_dim
  cut = {side: _cut(saved.params[side], embed_dim) for side in _SIDES}
  return dataclasses.replace(saved, model=config, params={**saved.params, **cut})


def _cut(projection: dict[str, Any], embed_dim: int) -> dict[str, Any]:
  if "output" in projection:  # A projection with a hidden layer.
    return {**projection, "output": _cut(projection["output"], embed_dim)}
  return {name: x[..., :embed_dim] for name, x in projection.items()}
