"""SigLIP's objective: classify every image-text pair in the batch as matching or not."""

import math
from typing import Annotated, Any

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import losses
from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.interfaces import Metrics
from clip_jax.losses import SameGroup
from clip_jax.objectives.base import PairObjective
from clip_jax.objectives.clip import log_scale


@checked
class Siglip(PairObjective):
  """Sigmoid cross-entropy of all B x B pairs, summed and divided by B; learned scale and bias.

  Args:
    scale: initial scale, the inverse temperature.
    bias: initial bias; far below 0, because only one pair in B matches. (The only config that
      big_vision ships, which is for a frozen image tower, starts at -2.71.)
    max_scale: upper bound of the scale; None (default) for no bound, as in the paper and in
      big_vision. (open_clip bounds it by 100, as in CLIP.)
    keep_patches: fraction of the patches that the image tower sees in training (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B matrix of logits; all rows by default.
    same_caption, group: how rows with the same caption are treated, see `PairObjective`.

  Source: Zhai et al. 2023, sec. 3.2 and algorithm 1.
  """

  def __init__(
    self,
    *,
    scale: PositiveFloat = 10.0,
    bias: float = -10.0,
    max_scale: Annotated[float, Range(1)] | None = None,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    same_caption: SameGroup = "negative",
    group: str = "tokens",
  ):
    super().__init__(
      keep_patches=keep_patches, chunk_size=chunk_size, same_caption=same_caption, group=group
    )
    bounds: dict[str, Any] = (
      {} if max_scale is None else dict(at_least=0.0, at_most=math.log(max_scale))
    )
    self.log_scale = nnx.Param(jnp.float32(math.log(scale)), **bounds)
    self.bias = nnx.Param(jnp.float32(bias))
    self.max_scale = max_scale

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss, float32 [] in nats per image, and retrieval accuracies both ways."""
    scale, bias = self.logit()

    def pair_loss(z_image, z_text, groups):
      chunks = dict(chunk_size=self.chunk_size, groups=groups)
      loss = losses.sigmoid_pairs(
        z_image, z_text, scale, bias, **chunks, same_group=self.same_caption
      )
      return loss, *losses.accuracies(z_image, z_text, **chunks)

    loss, image_to_text, text_to_image = self.mean_over_captions(pair_loss, embeddings)
    return loss, {
      "siglip/scale": scale,
      "siglip/bias": bias,
      "siglip/image_to_text_accuracy": image_to_text,
      "siglip/text_to_image_accuracy": text_to_image,
    }

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """(scale, bias) that turn a cosine similarity into a logit, float32 [] each."""
    return jnp.exp(self.log_scale[...]), self.bias[...]

  def set_logit(self, scale: float, bias: float) -> None:
    """Starts from the scale and bias of a trained model.

    A bias of 0 is that of a model without one, in which case this loss keeps its own.

    Raises:
      UserError: the scale is above `max_scale`.
    """
    self.log_scale[...] = log_scale(scale, self.max_scale)
    if bias:
      self.bias[...] = jnp.float32(bias)
