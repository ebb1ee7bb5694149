"""CLIP's objective: match each image with its text among all texts in the batch, and vice versa."""

import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import losses
from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Metrics
from clip_jax.losses import SameGroup
from clip_jax.objectives.base import PairObjective


@checked
class Clip(PairObjective):
  """Symmetric softmax cross-entropy over the global batch, with a learned temperature.

  Args:
    temperature: initial temperature.
    max_scale: upper bound of the scale, the inverse temperature. The parameter is clipped after the
      optimizer's update, so its gradient never vanishes.
    keep_patches: fraction of the patches that the image tower sees in training (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B similarity matrix; all rows by default.
    same_caption, group: how rows with the same caption are treated, see `PairObjective`.

  Source: Radford et al. 2021, sec. 2.3 and 2.5.
  """

  def __init__(
    self,
    *,
    temperature: PositiveFloat = 0.07,
    max_scale: Annotated[float, Range(1)] = 100.0,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    same_caption: SameGroup = "negative",
    group: str = "tokens",
  ):
    super().__init__(
      keep_patches=keep_patches, chunk_size=chunk_size, same_caption=same_caption, group=group
    )
    self.max_scale = max_scale
    self.log_scale = nnx.Param(
      jnp.float32(-math.log(temperature)), at_least=0.0, at_most=math.log(max_scale)
    )

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss, float32 [] in nats, and retrieval accuracies in both directions."""
    scale, _ = self.logit()

    def pair_loss(z_image, z_text, groups):
      chunks = dict(chunk_size=self.chunk_size, groups=groups)
      loss = losses.info_nce(z_image, z_text, scale, **chunks, same_group=self.same_caption)
      return loss, *losses.accuracies(z_image, z_text, **chunks)

    loss, image_to_text, text_to_image = self.mean_over_captions(pair_loss, embeddings)
    return loss, {
      "clip/logit_scale": scale,
      "clip/image_to_text_accuracy": image_to_text,
      "clip/text_to_image_accuracy": text_to_image,
    }

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """(scale, bias) that turn a cosine similarity into a logit, float32 [] each."""
    return jnp.exp(self.log_scale[...]), jnp.float32(0)

  def set_logit(self, scale: float, bias: float) -> None:
    """Starts from the scale of a trained model; this loss has no bias, which is ignored.

    Raises:
      UserError: the scale is above `max_scale`.
    """
    self.log_scale[...] = log_scale(scale, self.max_scale)


def log_scale(scale: float, max_scale: float | None) -> jax.Array:
  """Returns the logarithm of a trained model's scale, float32 [].

  Raises:
    UserError: the scale is above `max_scale` by more than rounding.
  """
  if max_scale is not None and scale > 1.001 * max_scale:
    raise UserError(
      f"The trained model's logit scale is {scale:.4g}, above max_scale={max_scale:.4g}. Set "
      f"--config.objective.max_scale to at least {scale:.4g}, or --config.train.init_logit=False."
    )
  return jnp.float32(math.log(scale if max_scale is None else min(scale, max_scale)))
