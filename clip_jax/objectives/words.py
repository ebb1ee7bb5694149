"""Words: another objective, plus the classification of images by the words of their captions."""

from typing import Annotated, Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from clip_jax.cli.values import PositiveInt, Range, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.losses.vocabulary import token_cross_entropy
from clip_jax.model.two_towers import TwoTowers
from clip_jax.nn.layers import Linear
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.objectives.added_term import AddedTerm, SharedTowers

_MANY = 2**30  # Counts are halved before they overflow.


@checked
class Words(AddedTerm):
  """A pair objective, plus a cross-entropy of each image's features with its caption's tokens.

  A linear head turns the features of an image, before the projection, into a logit for every token
  of the vocabulary. With n captions seen so far, of which df_c have the token c, the loss is

    w_c = max(0, log(n / (1 + df_c)))                         for the tokens of the image's captions
    -sum over c of w_c / (sum of all w) log softmax(logits)_c

  so frequent tokens count little, and padding and begin and end tokens, which all captions have, do
  not count at all. The order of the words is ignored, and a word counts once.

  The counts are those of the whole batch, on any number of devices and with any number of
  microbatches, and belong to the train state.

  Args:
    model: the model that is trained; `build` passes it.
    pairs: the pair objective; `Clip()` by default.
    weight: weight of the cross-entropy.
    chunk_size: rows whose logits are in memory at the same time, a divisor of the batch size; by
      default as many as have at most 2^26 logits.
    dtype: dtype the head computes in, a name in `target.DTYPES`.

  Source: Huang et al. 2024 (SuperClass), sec. 3, for the loss; Zhao et al. 2025 (SuperCLIP) for its
  combination with CLIP.
  """

  def __init__(
    self,
    *,
    model: TwoTowers,
    pairs: Objective | None = None,
    weight: Annotated[float, Range(0, 1e6)] = 1.0,
    chunk_size: PositiveInt | None = None,
    dtype: Dtype = "auto",
    rngs: nnx.Rngs,
  ):
    super().__init__(pairs, "image", "tokens")
    self.weight, self.chunk_size = weight, chunk_size
    self.vocab_size = model.text.vocab_size
    self.head = Linear(model.image.width, self.vocab_size, dtype=resolve_dtype(dtype), rngs=rngs)
    self.captions = nnx.Variable(jnp.int32(0))
    self.counts = nnx.Variable(jnp.zeros(self.vocab_size, jnp.int32))

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs`, "word_features" [B, D] and "words" int [B, L].

    Raises:
      UserError: the batch has stored features instead of tokens.
    """
    tokens = batch["tokens"]
    if jnp.issubdtype(tokens.dtype, jnp.floating):
      raise UserError(
        "Words needs the tokens of the captions, but the data has stored features of the text "
        "tower. Store only the features of the image tower, or leave the objective Words out."
      )
    shared: Any = SharedTowers.of(model)
    z = self.pairs.embed(shared, batch, train=train, key=key)
    z["word_features"] = shared.seen_features(batch["image"], train=train)
    z["words"] = tokens.reshape(len(tokens), -1)  # Several captions of an image are one set.
    return z

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss, float32 [] in nats, and metrics; with `train`, counts the tokens."""
    pairs, metrics = self.pairs.loss(embeddings, train=train)
    tokens = embeddings["words"]
    first = first_occurrences(tokens)
    counts = self.counts[...] + jnp.zeros_like(self.counts[...]).at[tokens].add(first * 1)
    captions = self.captions[...] + len(tokens)
    rarity = jnp.log(captions.astype(jnp.float32) / (1 + counts))  # [V]
    weights = first * jnp.maximum(rarity, 0)[tokens]
    weights /= jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
    words, correct = token_cross_entropy(
      self.head,
      embeddings["word_features"],
      tokens,
      lax.stop_gradient(weights),
      vocab_size=self.vocab_size,
      chunk_size=self.chunk_size,
    )
    if train:
      many = captions >= _MANY
      self.captions[...] = jnp.where(many, captions // 2, captions)
      self.counts[...] = jnp.where(many, counts // 2, counts)
    loss = words.mean()
    return pairs + self.weight * loss, {
      **metrics,
      "pairs/loss": pairs,
      "words/loss": loss,
      "words/accuracy": correct.mean(),
    }


def first_occurrences(tokens: jax.Array) -> jax.Array:
  """Marks the tokens that do not occur earlier in their row, int [B, L] -> bool [B, L]."""
  order = jnp.argsort(tokens, axis=1, stable=True)
  ordered = jnp.take_along_axis(tokens, order, axis=1)
  new = jnp.concatenate([jnp.ones_like(ordered[:, :1]), ordered[:, 1:] - ordered[:, :-1]], 1) != 0
  return jnp.take_along_axis(new, jnp.argsort(order, axis=1), axis=1)
