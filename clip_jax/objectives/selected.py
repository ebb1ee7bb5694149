"""Selected: an objective on the part of each batch from which the model learns most (JEST)."""

from typing import Annotated, Literal

import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.losses.chunks import NEVER, float32, product
from clip_jax.model.two_towers import TwoTowers, l2_normalize
from clip_jax.objectives.added_term import AddedTerm

_TEACHER = ("teacher_image", "teacher_text")


@checked
class Selected(AddedTerm):
  """A pair objective that is trained on a part of each batch, which is selected for every step.

  A step embeds the whole batch without a gradient, selects `fraction` of its rows, and makes the
  usual step with them. They are drawn in chunks. The chance of a row in the next chunk is
  proportional to exp(score / temperature), where the score depends on the rows selected so far:

    "learnable"  the loss of the model minus that of a reference model: what is hard for the model
                 though it can be learned, and so not noise
    "hard"       the loss of the model
    "easy"       minus the loss of the reference model

  The loss of row i among the selected rows S is InfoNCE's, the mean over both directions of

    log(1 + sum over j in S of exp(l_ij - l_ii)),   l the logits of images and texts

  The reference model's unit vectors are batch entries, "teacher_image" and "teacher_text", float
  [B, E'], as those of `Distill`.

  The selection depends on the seed and the step only, not on the devices or microbatches. This
  objective must be the outermost one, whose `pairs` may add terms.

  Args:
    pairs: the objective that is trained; `Clip()` by default.
    fraction: fraction of the rows that are selected (JEST: 0.2); the number of rows must be
      divisible by `chunks`, the devices and the microbatches.
    chunks: number of chunks (JEST: 16); the rows of one chunk do not see each other.
    score: see above; "hard" needs no reference model.
    temperature: a lower one selects more sharply.
    reference_scale: the reference model's logit scale.

  Source: Evans et al. 2024 (JEST), sec. 3 and algorithm 1, with InfoNCE in place of the sigmoid
  loss.
  """

  def __init__(
    self,
    *,
    pairs: Objective | None = None,
    fraction: PositiveFraction = 0.2,
    chunks: PositiveInt = 16,
    score: Literal["learnable", "hard", "easy"] = "learnable",
    temperature: PositiveFloat = 1.0,
    reference_scale: Annotated[float, Range(above=0, high=1e4)] = 100.0,
  ):
    super().__init__(pairs, *(() if score == "hard" else _TEACHER))
    self.fraction, self.chunks, self.score = fraction, chunks, score
    self.temperature, self.reference_scale = temperature, reference_scale

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs`, and those of the reference model, unit length."""
    z = self.pairs.embed(model, batch, train=train, key=key)
    if self.score != "hard":
      z |= {name: l2_normalize(float32(batch[name])) for name in _TEACHER}
    return z

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss of `pairs` on the rows that it is given, float32 [], and its metrics."""
    return self.pairs.loss(embeddings, train=train)

  def selected_rows(self, B: int) -> int:
    """Returns the number of rows that are selected of B.

    Raises:
      UserError: the chunks do not divide it.
    """
    rows = round(self.fraction * B)
    if rows < self.chunks or rows % self.chunks:
      raise UserError(
        f"Selected(fraction={self.fraction}) takes {rows} of the {B} rows of a batch, which "
        f"{self.chunks} chunks do not divide. Set --config.objective.chunks to a divisor."
      )
    return rows

  def select(self, embeddings: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Selects rows of a batch, without a gradient.

    Args:
      embeddings: the result of `embed` for the whole batch.
      key: the random key of this step.

    Returns:
      Different row numbers, int [b].

    Raises:
      UserError: the batch has several captions per image.
    """
    z = lax.stop_gradient(embeddings)
    if z["text"].ndim != 2:
      raise UserError(
        "Selected compares each image with one caption. Set --config.data.views."
        "captions_per_image=1."
      )
    B = len(z["image"])
    size = self.selected_rows(B) // self.chunks
    scale = lax.stop_gradient(self.logit()[0])
    models = [] if self.score == "easy" else [(1.0, scale * float32(z["image"]), z["text"])]
    if self.score != "hard":
      reference = self.reference_scale * z["teacher_image"], z["teacher_text"]
      models.append((-1.0, *reference))

    taken, rows = jnp.zeros(B, bool), []
    sums = [(jnp.full(B, NEVER), jnp.full(B, NEVER)) for _ in models]
    for chunk, own_key in enumerate(jax.random.split(key, self.chunks)):
      score = jnp.zeros(B)
      for (sign, *_), pair in zip(models, sums):
        score += sign * sum(jax.nn.softplus(one) for one in pair) / 2
      noise = jax.random.gumbel(own_key, (B,))
      _, chosen = lax.top_k(jnp.where(taken, NEVER, score / self.temperature + noise), size)
      rows.append(chosen)
      taken = taken.at[chosen].set(True)
      if chunk + 1 < self.chunks:
        sums = [
          _with_chosen(image, float32(text), chosen, *pair)
          for (_, image, text), pair in zip(models, sums)
        ]
    return jnp.concatenate(rows)


def _with_chosen(image, text, chosen, by_image, by_text):
  """Adds the terms exp(l_ij - l_ii) of the chosen rows j to the sums of all rows, as logarithms."""
  own = (image * text).sum(1)  # [B]
  add = lambda old, logits: jnp.logaddexp(old, jax.nn.logsumexp(logits - own[:, None], axis=1))
  return add(by_image, product(image, text[chosen])), add(by_text, product(text, image[chosen]))
