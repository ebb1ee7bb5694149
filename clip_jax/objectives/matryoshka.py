"""Matryoshka: a pair objective on prefixes of the embeddings too, so that they can be shortened."""

from collections.abc import Sequence
from typing import Annotated, cast

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import Range, Width, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.model.learner import split_state
from clip_jax.model.two_towers import TwoTowers, l2_normalize
from clip_jax.objectives.added_term import AddedTerm

_ACCURACY = "image_to_text_accuracy"


@checked
class Matryoshka(AddedTerm):
  """The loss of a pair objective, plus its loss on the first d entries of all embeddings.

  Each prefix is normalised to unit length, and all share the scale (and bias) of `pairs`. The total
  is the sum over the prefixes and the whole, with one weight for each prefix and 1 for the whole.
  `clip_jax.load(RUN, embed_dim=d)` then encodes into d entries.

  Args:
    model: the model that is trained; `build` passes it.
    pairs: the pair objective, one without state, as `Clip()` (the default) or `Siglip()`.
    dims: lengths of the prefixes, increasing and below the model's embed_dim.
    weights: a weight for each prefix; 1 by default, as in the paper.

  Source: Kusupati et al. 2022 (Matryoshka Representation Learning), sec. 3, eq. 1.
  """

  def __init__(
    self,
    *,
    model: TwoTowers,
    pairs: Objective | None = None,
    dims: Sequence[Width] = (64, 128, 256),
    weights: Sequence[Annotated[float, Range(0, 1e6)]] | None = None,
  ):
    super().__init__(pairs)
    if isinstance(self.pairs, AddedTerm) or split_state(cast(nnx.Module, self.pairs))[2]:
      raise UserError(
        f"Matryoshka cannot compute the loss of {type(self.pairs).__name__} several times in a "
        f"step. Let it wrap a loss of pairs without state, such as Clip or Siglip, and wrap "
        f"{type(self.pairs).__name__} around it, if that has an argument pairs."
      )
    features = jnp.zeros((1, model.image.width))
    E = jax.eval_shape(model.project_image, features).shape[1]
    if not dims or list(dims) != sorted({*dims}) or dims[-1] >= E:
      raise UserError(
        f"Matryoshka(dims={tuple(dims)}) must increase and stay below the model's embed_dim={E}."
      )
    if weights is not None and len(weights) != len(dims):
      raise UserError(f"Matryoshka has {len(dims)} dims but {len(weights)} weights.")
    self.dims = tuple(dims)
    self.weights = (1.0,) * len(dims) if weights is None else tuple(weights)

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs`."""
    return self.pairs.embed(model, batch, train=train, key=key)

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the weighted sum of the losses, float32 [], and metrics of each prefix."""
    total, metrics = self.pairs.loss(embeddings, train=train)
    metrics = {**metrics, "pairs/loss": total}
    for d, weight in zip(self.dims, self.weights):
      cut = {side: l2_normalize(embeddings[side][..., :d]) for side in ("image", "text")}
      loss, of_prefix = self.pairs.loss({**embeddings, **cut}, train=train)
      metrics[f"matryoshka/loss_{d}"] = loss
      for name, value in of_prefix.items():
        if name.endswith(_ACCURACY):
          metrics[f"matryoshka/{_ACCURACY}_{d}"] = value
      total = total + weight * loss
    return total, metrics
