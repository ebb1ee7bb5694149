"""Distillation: another objective, plus terms that pull embeddings towards those of a teacher."""

from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax import losses
from clip_jax.cli.values import NonNegativeFloat, PositiveFloat, PositiveInt, Range, Width, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.model.two_towers import TwoTowers, l2_normalize
from clip_jax.nn.layers import Linear
from clip_jax.objectives.added_term import AddedTerm

Weight = Annotated[float, Range(0, 1e6)]
_TEACHER = ("teacher_image", "teacher_text")


@checked
class Distill(AddedTerm):
  """A pair objective, plus the distance to a teacher's embeddings of the same images and texts.

  The teacher's unit vectors are batch entries, "teacher_image" and "teacher_text", float [B, E'].
  `StoredViews` with `teacher=True` reads them from the store that `clip-jax embed` writes, with the
  same crop of the image as the teacher saw. The terms are

    feature    mean squared distance of each embedding, mapped by a matrix to the teacher's space,
               to the teacher's embedding, summed over images and texts (CLIP-KD's FD)
    logit      KL divergence of the student's distribution over the texts of the batch from the
               teacher's, for each image, and the same for each text; mean of both (CLIP-KD's CRD,
               the affinity distillation of TinyCLIP and MobileCLIP)
    affinity   the same between images and images, and between texts and texts, without each one's
               similarity to itself

  Args:
    model: the model that is trained; `build` passes it.
    teacher_dim: size of the teacher's embeddings, E'.
    pairs: the pair objective; `Clip()` by default.
    pairs_weight, feature_weight, logit_weight, affinity_weight: weights of the terms.
    teacher_scale: the teacher's logit scale.
    chunk_size: chunk size of the logit and affinity terms, in rows of the B x B matrices.

  Source: Yang et al. 2024 (CLIP-KD), sec. 3; Wu et al. 2023 (TinyCLIP), sec. 3.1; Vasu et al. 2024
  (MobileCLIP), sec. 3.
  """

  def __init__(
    self,
    *,
    model: TwoTowers,
    teacher_dim: Width,
    pairs: Objective | None = None,
    pairs_weight: Weight = 1.0,
    feature_weight: Weight = 0.0,
    logit_weight: Weight = 1.0,
    affinity_weight: NonNegativeFloat = 0.0,
    teacher_scale: PositiveFloat = 100.0,
    chunk_size: PositiveInt | None = None,
    rngs: nnx.Rngs,
  ):
    if not feature_weight + logit_weight + affinity_weight:
      raise UserError(
        "Distill without a term: set one of feature_weight, logit_weight, affinity_weight."
      )
    super().__init__(pairs, *_TEACHER)
    self.pairs_weight, self.feature_weight = pairs_weight, feature_weight
    self.logit_weight, self.affinity_weight = logit_weight, affinity_weight
    self.teacher_dim, self.teacher_scale, self.chunk_size = teacher_dim, teacher_scale, chunk_size
    E = jax.eval_shape(model.project_image, jnp.zeros((1, model.image.width))).shape[1]
    make = lambda: Linear(E, teacher_dim, bias=False, rngs=rngs)
    # For images and texts.
    self.to_teacher = nnx.List([make(), make()] if feature_weight else [])

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs`, and the teacher's, float32 [B, E'] each, unit length."""
    z = self.pairs.embed(model, batch, train=train, key=key)
    for name in _TEACHER:
      if batch[name].shape[-1] != self.teacher_dim:
        raise UserError(
          f"The teacher's embeddings have {batch[name].shape[-1]} entries, but "
          f"objective.teacher_dim={self.teacher_dim}. Set --config.objective.teacher_dim="
          f"{batch[name].shape[-1]}."
        )
      # Stored in float16, they are unit vectors only up to rounding.
      z[name] = l2_normalize(batch[name].astype(jnp.float32))
    return z

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the weighted sum of the terms, float32 [], and the metrics of `pairs`."""
    total, metrics = self.pairs.loss(embeddings, train=train)
    metrics = {**metrics, "pairs/loss": total}
    total = self.pairs_weight * total
    for name in ("feature", "logit", "affinity"):
      if weight := getattr(self, f"{name}_weight"):
        term = getattr(self, f"_{name}")(embeddings)
        metrics[f"distill/{name}"] = term
        total = total + weight * term
    return total, metrics

  def _feature(self, z):
    mapped = zip(self.to_teacher, ("image", "text"), _TEACHER)
    return sum(
      jnp.square(to_teacher(z[own]) - z[teacher]).sum(1).mean()
      for to_teacher, own, teacher in mapped
    )

  def _logit(self, z):
    image, text, t_image, t_text = (z[name] for name in ("image", "text", *_TEACHER))
    return (self._kl(image, text, t_image, t_text) + self._kl(text, image, t_text, t_image)) / 2

  def _affinity(self, z):
    image, text, t_image, t_text = (z[name] for name in ("image", "text", *_TEACHER))
    one = self._kl(image, image, t_image, t_image, own=False)
    return (one + self._kl(text, text, t_text, t_text, own=False)) / 2

  def _kl(self, a, b, t_a, t_b, own=True):
    return losses.relation_kl(
      a,
      b,
      self.logit()[0],
      t_a,
      t_b,
      self.teacher_scale,
      chunk_size=self.chunk_size,
      include_own=own,
    )
