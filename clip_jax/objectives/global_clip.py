"""Global contrastive losses: CLIP with the softmax over the whole data set, from small batches."""

import math
from typing import Annotated, Any, Literal

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax import losses
from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics
from clip_jax.losses import SameGroup
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.base import PairObjective
from clip_jax.objectives.clip import log_scale
from clip_jax.objectives.mean_ratios import log_mean_ratios
from clip_jax.objectives.per_example import PerExample, log_mean_by_index, mean_by_index

UNSEEN = -1e30  # Logarithm of the normaliser of a record that has not been in a batch yet.
_LEAST_TAU, _MOST_TAU, _STEEPEST = (
  0.01,
  1.0,
  5.0,
)  # Bounds of individual temperatures; of their steps.


@checked
class GlobalClip(PairObjective):
  """Contrasts each pair with all pairs of the data set, estimated by moving averages.

  For image i with cosines s_ij to all texts, g_i = mean over j != i of exp((s_ij - s_ii) / tau);
  likewise for each text. The loss is the mean of log(eps + g) with g over the *data set*. A batch
  gives a noisy g, and the logarithm of a noisy number is biased, the more so the smaller the batch.
  So each record keeps a moving average u <- (1 - gamma) u + gamma g of its two normalisers, and the
  gradient of log(eps + g) is estimated by that of g / (eps + u) with u constant.

  With gamma = 1 and eps = 1 / (B - 1), version "v0" has the gradient of InfoNCE on the batch.

  Versions, as in FastCLIP:
    v0: one learned temperature, as in CLIP.
    v1: the constant `temperature` (SogCLR).
    v2: a temperature for every record and direction, which minimises tau (log(eps + u) + rho)
      (RGCL, iSogCLR).
    v3: one learned temperature; the loss is tau times that of v0, plus rho tau (FastCLIP's own).

  FastCLIP trains the temperatures of v2 and v3 with an Adam of their own. Here the temperature of
  v3 is trained by the run's optimizer through its logarithm, and those of v2 by plain gradient
  steps of the records in the batch, clipped as in FastCLIP.

  The averages are stored in logarithms, so that they neither overflow nor need FastCLIP's reset.

  Args:
    version: see above.
    gamma: weight of the current batch in the moving averages after the decay; smaller is better for
      smaller batches (FastCLIP uses 0.2 at batch 1,024 and 0.8 at 5,120).
    gamma_decay_epochs: gamma falls from 1 to `gamma` along a cosine over this many passes over the
      data, as in FastCLIP, where it is half of the run; 0 uses `gamma` from the start.
    temperature: initial or constant temperature.
    max_scale: upper bound of the inverse temperature in v0 and v3.
    rho: weight of the temperature in v2 and v3 (6.5 to 16 in FastCLIP for v3, 7 for v2).
    temperature_learning_rate: step size of the individual temperatures of v2.
    eps: added to each normaliser.
    examples: number of records of the training data, less than 2^31; a run fills it in.
    keep_patches: fraction of the patches that the image tower sees in training (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B similarity matrix; all rows by default.
    same_caption, group: whether rows with the same caption are negatives or left out ("ignore");
      see `PairObjective`.

  Source: Yuan et al. 2022 (SogCLR), eq. 4 and algorithm 1; Qiu et al. 2023 (iSogCLR), sec. 3; Wei
  et al. 2024 (FastCLIP), sec. 3 and 4.
  """

  def __init__(
    self,
    *,
    version: Literal["v0", "v1", "v2", "v3"] = "v3",
    gamma: PositiveFraction = 0.2,
    gamma_decay_epochs: Annotated[float, Range(0, 1e6)] = 0.0,
    temperature: PositiveFloat = 0.07,
    max_scale: Annotated[float, Range(1)] = 100.0,
    rho: Annotated[float, Range(0, 1e3)] = 8.5,
    temperature_learning_rate: PositiveFloat = 0.001,
    eps: Annotated[float, Range(0, 1)] = 1e-14,
    examples: Annotated[int, Range(1, 2**31 - 2**12)] | None = None,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    same_caption: SameGroup = "negative",
    group: str = "tokens",
  ):
    if same_caption == "positive":
      raise UserError(
        "GlobalClip cannot treat other rows with the same caption as positives, because its "
        "normalisers are those of one pair. Set same_caption to 'ignore' or 'negative'."
      )
    if examples is None:
      raise UserError(
        "GlobalClip(examples=) is missing: set it to the number of records of the training data. "
        "A training run fills it in."
      )
    super().__init__(
      keep_patches=keep_patches, chunk_size=chunk_size, same_caption=same_caption, group=group
    )
    self.inputs = tuple(dict.fromkeys((*self.inputs, "index")))
    self.version, self.rho, self.log_eps = version, rho, math.log(max(eps, 1e-37))
    self.gamma, self.gamma_decay_epochs = gamma, gamma_decay_epochs
    self.temperature_learning_rate, self.examples = temperature_learning_rate, examples
    self.max_scale = max_scale if version in ("v0", "v3") else None
    initial = jnp.float32(-math.log(temperature))
    if self.max_scale:
      self.log_scale: Any = nnx.Param(initial, at_least=0.0, at_most=math.log(max_scale))
    else:
      self.log_scale = nnx.Variable(initial)
    taus = dict(tau_image=temperature, tau_text=temperature) if version == "v2" else {}
    self.per_example = PerExample(examples, log_u_image=UNSEEN, log_u_text=UNSEEN, **taus)
    self.updates = nnx.Variable(jnp.int32(0))

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `PairObjective.embed` and the records' "index", int [B].

    Raises:
      UserError: the batch has several captions per image.
    """
    if batch["tokens"].ndim != 2:
      raise UserError(
        "GlobalClip compares each image with one caption. Set --config.data.views."
        "captions_per_image=1."
      )
    return {**super().embed(model, batch, train=train, key=key), "index": batch["index"]}

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the estimate of the global loss, float32 [] in nats, and metrics.

    With `train`, updates the moving averages, and the temperatures of v2, of the records in the
    batch. If a record occurs several times in it, all its rows count.
    """
    z = (embeddings["image"], embeddings["text"])
    index, groups = embeddings["index"], embeddings.get("group")
    scales = self._scales(index)
    options: dict[str, Any] = dict(
      chunk_size=self.chunk_size, groups=groups, same_group=self.same_caption
    )
    log_g = log_mean_ratios(*z, *scales, **options)
    gamma = self._gamma(len(index))
    terms, values = [], []
    for side, own in zip(("image", "text"), log_g):
      log_u = self._averaged(f"log_u_{side}", index, own, gamma, train)
      value = jnp.logaddexp(log_u, self.log_eps)
      ratio = jnp.exp(own - value)  # Its gradient is that of g, divided by eps + u.
      terms.append(value + ratio - lax.stop_gradient(ratio))
      values.append(value)
    if self.version == "v2":
      taus = [1 / scale for scale in scales]
      if train:
        self._step_temperatures(index, z, scales, values, log_g, options)
      loss = sum((tau * (term + self.rho)).mean() for tau, term in zip(taus, terms)) / 2
    else:
      loss = (terms[0].mean() + terms[1].mean()) / 2
    if self.version == "v3":
      loss = (loss + self.rho) * jnp.exp(-self.log_scale[...])
    if train:
      self.updates[...] += 1
    image_to_text, text_to_image = losses.accuracies(*z, chunk_size=self.chunk_size, groups=groups)
    return loss, {
      "clip/logit_scale": jnp.mean(scales[0]),
      "clip/image_to_text_accuracy": image_to_text,
      "clip/text_to_image_accuracy": text_to_image,
      "clip/gamma": gamma,
    }

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """(scale, bias) that turn a cosine similarity into a logit, float32 [] each.

    The scale of v2 is that of its initial temperature, because a new pair has none of its own.
    """
    return jnp.exp(self.log_scale[...]), jnp.float32(0)

  def set_logit(self, scale: float, bias: float) -> None:
    """Starts from the scale of a trained model, in v2 for every record; there is no bias.

    Raises:
      UserError: the scale is above `max_scale`.
    """
    self.log_scale[...] = log_scale(scale, self.max_scale)
    if self.version == "v2":
      for name in ("tau_image", "tau_text"):
        self.per_example.fill(name, min(max(1 / scale, _LEAST_TAU), _MOST_TAU))

  def _scales(self, index):
    """Inverse temperatures from images to texts and from texts to images, float32 [B] each."""
    if self.version == "v2":
      return tuple(1 / self.per_example.read(f"tau_{side}", index) for side in ("image", "text"))
    return (jnp.broadcast_to(jnp.exp(self.log_scale[...]), index.shape),) * 2

  def _averaged(self, name, index, log_g, gamma, train):
    """Returns the logarithm of the moving average of g after this batch, float32 [B]."""
    old, new = self.per_example.read(name, index), log_mean_by_index(index, log_g)
    kept = jnp.where(gamma < 1, jnp.log1p(-jnp.minimum(gamma, 1 - 1e-7)), UNSEEN) + old
    log_u = lax.stop_gradient(
      jnp.where(old <= UNSEEN / 2, new, jnp.logaddexp(kept, jnp.log(gamma) + new))
    )
    if train:
      self.per_example.write(name, index, log_u)
    return log_u

  def _gamma(self, B):
    """The weight of this batch in the moving averages, float32 []."""
    if not self.gamma_decay_epochs:
      return jnp.float32(self.gamma)
    epochs = self.updates[...].astype(jnp.float32) * (B / self.examples)
    done = jnp.minimum(epochs / self.gamma_decay_epochs, 1)
    return self.gamma + (1 - self.gamma) * 0.5 * (1 + jnp.cos(jnp.pi * done))

  def _step_temperatures(self, index, z, scales, values, log_g, options):
    """Makes a gradient step of the individual temperatures of the records in the batch."""
    fixed = lax.stop_gradient(z)
    # Each log g depends on the scale of its own row only.
    total = lambda *scales: sum(x.sum() for x in log_mean_ratios(*fixed, *scales, **options))
    of_scales = jax.grad(total, argnums=(0, 1))(*lax.stop_gradient(scales))
    for k, side in enumerate(("image", "text")):
      tau = 1 / lax.stop_gradient(scales[k])
      ratio = jnp.exp(lax.stop_gradient(log_g[k]) - values[k])
      # d/dtau of tau (log(eps + g) + rho), with 1 / (eps + u) for 1 / (eps + g); scale = 1 / tau.
      gradient = values[k] + self.rho - ratio * of_scales[k] / tau
      gradient = mean_by_index(index, jnp.clip(gradient, -_STEEPEST, _STEEPEST))
      new = jnp.clip(tau - self.temperature_learning_rate * gradient, _LEAST_TAU, _MOST_TAU)
      self.per_example.write(f"tau_{side}", index, new)
