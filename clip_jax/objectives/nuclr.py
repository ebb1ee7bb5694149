"""NUCLR: a global contrastive loss that accounts for how popular each image and text is."""

import math
from typing import Annotated, Any

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax import losses
from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.interfaces import Metrics
from clip_jax.losses import SameGroup
from clip_jax.objectives.global_clip import UNSEEN, GlobalClip
from clip_jax.objectives.mean_ratios import log_mean_ratios
from clip_jax.objectives.per_example import PerExample, mean_by_index


@checked
class Nuclr(GlobalClip):
  """`GlobalClip(version="v1")` with a learned popularity of every image and text as a negative.

  With cosines s_ij, the temperature tau and the popularity zeta_j of text j, image i contributes

    log(u_i + exp(-zeta_i / tau) / (N - 1)),   u_i: moving average of the mean over j != i of
                                               exp((s_ij - s_ii - zeta_j) / tau)

  and each text the same with the popularities of images; the gradient treats u as constant. A text
  that is close to many images is thus pushed away less from each: it need not be a false match.

  At their optimum, exp(zeta_j / tau) is the sum over all images i of the probability that the model
  gives to text j for image i. Records in the batch make a gradient step towards it:

    zeta_j <- zeta_j - rate (1 - N / (N - 1) mean over i of exp((s_ij - s_ii - zeta_j) / tau) / v_i)

  where v_i is what the logarithm is of, for image i.

  Args:
    gamma: weight of the current batch in the moving averages (0.8 in the paper's code).
    gamma_decay_epochs: as in `GlobalClip`.
    temperature: the constant temperature.
    popularity: initial popularity of all images and texts.
    popularity_learning_rate: step size of the popularities of texts.
    image_rate_ratio: that of images is this times the one of texts.
    popularity_start_epochs: passes over the data before the popularities are trained.
    examples, keep_patches, chunk_size, same_caption, group: as in `GlobalClip`.

  Source: Wang et al. 2025 (On Discriminative Probabilistic Modeling for Self-Supervised
  Representation Learning), with the values of its code for CC3M.
  """

  def __init__(
    self,
    *,
    gamma: PositiveFraction = 0.8,
    gamma_decay_epochs: Annotated[float, Range(0, 1e6)] = 0.0,
    temperature: PositiveFloat = 0.01,
    popularity: Annotated[float, Range(-10, 10)] = -0.05,
    popularity_learning_rate: PositiveFloat = 5e-6,
    image_rate_ratio: Annotated[float, Range(0, 1e3)] = 0.1,
    popularity_start_epochs: Annotated[float, Range(0, 1e6)] = 5.0,
    examples: Annotated[int, Range(2, 2**31 - 2**12)] | None = None,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    same_caption: SameGroup = "negative",
    group: str = "tokens",
  ):
    super().__init__(
      version="v1",
      gamma=gamma,
      gamma_decay_epochs=gamma_decay_epochs,
      temperature=temperature,
      examples=examples,
      keep_patches=keep_patches,
      chunk_size=chunk_size,
      same_caption=same_caption,
      group=group,
    )
    zeta = dict(zeta_image=popularity, zeta_text=popularity)
    self.per_example = PerExample(self.examples, log_u_image=UNSEEN, log_u_text=UNSEEN, **zeta)
    self.rates = {"text": popularity_learning_rate}
    self.rates["image"] = image_rate_ratio * popularity_learning_rate
    self.popularity_start_epochs = popularity_start_epochs

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the estimate of the global loss, float32 [] in nats, and metrics.

    With `train`, updates the moving averages and the popularities of the records in the batch.
    """
    image, text, index = (embeddings[name] for name in ("image", "text", "index"))
    groups, scale = embeddings.get("group"), jnp.exp(self.log_scale[...])
    options: dict[str, Any] = dict(
      chunk_size=self.chunk_size, groups=groups, same_group=self.same_caption
    )
    own = (image * text).sum(1)  # [B]

    # The ratios of similarities to which a number is added for each image and for each text.
    def ratios(side, of_image, of_text):
      add = lambda z, x, y: jnp.concatenate([z.astype(jnp.float32), x[:, None], y[:, None]], axis=1)
      one, scales = jnp.ones_like(own), jnp.broadcast_to(scale, own.shape)
      z = add(image, of_image, one), add(text, one, of_text)
      return log_mean_ratios(*z, scales, scales, **options)[("image", "text").index(side)]

    zero, gamma = jnp.zeros_like(own), self._gamma(len(index))
    zeta = {side: self.per_example.read(f"zeta_{side}", index) for side in ("image", "text")}
    values, total = {}, jnp.float32(0)
    for side, other in (("image", "text"), ("text", "image")):
      added = (zero, -zeta["text"]) if side == "image" else (-zeta["image"], zero)
      log_g = ratios(side, *added) - scale * zeta[other]
      log_u = self._averaged(f"log_u_{side}", index, log_g, gamma, train)
      self_term = -scale * zeta[other] - math.log(self.examples - 1)
      values[side] = jnp.logaddexp(log_u, self_term)
      ratio = jnp.exp(log_g - values[side])  # Its gradient is that of g, with u constant.
      total = total + (values[side] + ratio - lax.stop_gradient(ratio)).mean() / 2
    if train:
      self._step_popularities(index, zeta, values, lax.stop_gradient(own), ratios, scale)
      self.updates[...] += 1
    image_to_text, text_to_image = losses.accuracies(
      image, text, chunk_size=self.chunk_size, groups=groups
    )
    return total, {
      "clip/logit_scale": scale,
      "clip/image_to_text_accuracy": image_to_text,
      "clip/text_to_image_accuracy": text_to_image,
      "clip/gamma": gamma,
      "nuclr/image_popularity": zeta["image"].mean(),
      "nuclr/text_popularity": zeta["text"].mean(),
    }

  def _step_popularities(self, index, zeta, values, own, ratios, scale):
    """Makes a gradient step of the popularities of the records in the batch."""
    B, N = len(index), self.examples
    epochs = self.updates[...].astype(jnp.float32) * (B / N)
    started = epochs >= self.popularity_start_epochs
    zero = jnp.zeros_like(own)
    # Anchors of one side share out their probability among the records of the other.
    for side, anchors in (("image", "text"), ("text", "image")):
      share = -own - values[anchors] / scale
      added = (zero, share) if anchors == "text" else (share, zero)
      others = jnp.log((B - 1) / B) + ratios(side, *added) - values[anchors]
      mean = jnp.logaddexp(others, -jnp.log(1.0 * B) - values[anchors]) - scale * zeta[side]
      gradient = 1 - N / (N - 1) * jnp.exp(lax.stop_gradient(mean))
      new = zeta[side] - started * self.rates[side] * mean_by_index(index, gradient)
      self.per_example.write(f"zeta_{side}", index, new)
