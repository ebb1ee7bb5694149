"""Captioner: another objective, plus a text decoder that writes the captions of the images."""

from typing import Annotated, Any, cast

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import Depth, Fraction, PositiveInt, Range, Width, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.losses.vocabulary import token_cross_entropy
from clip_jax.model.text_decoder import TextDecoder, caption_weights
from clip_jax.model.two_towers import TwoTowers
from clip_jax.nn.remat import RematPolicy
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.objectives.added_term import AddedTerm, SharedTowers


@checked
class Captioner(AddedTerm):
  """A pair objective, plus the cross-entropy of the captions' tokens, given the images.

  The decoder attends to the tokens of the image tower (`Vit`) or to the positions of its last
  feature map (`BitResnet`), before they are pooled, and of the patches that `pairs` keeps. A text
  ends with padding. The loss is the mean over all tokens of the batch, including one padding token
  after each caption that leaves room for it.

  After training, `clip_jax.load(RUN).caption(images)` writes captions.

  Args:
    model: the model that is trained; `build` passes it.
    pairs: the pair objective; `Clip()` by default.
    weight: weight of the captioning loss (CoCa: 2, for a weight of 1 of the contrastive loss).
    width, depth, num_heads, mlp_dim: of the decoder; by default the width of the text tower, 3
      blocks, heads of width 64 and four times the width.
    parallel: fraction of the captions of which the decoder sees no token, and so predicts all of
      them at once (CapPa: 0.75); drawn anew at every step.
    chunk_size: rows whose logits are in memory at the same time, a divisor of the rows of a
      microbatch; by default as many as have at most 2^26 logits.
    dtype: dtype the decoder computes in, a name in `target.DTYPES`.
    remat: rematerialisation policy of a block, a name in `remat.REMAT_POLICIES`.

  Source: Yu et al. 2022 (CoCa), sec. 3; Tschannen et al. 2023 (CapPa), sec. 3, for `parallel`.
  """

  def __init__(
    self,
    *,
    model: TwoTowers,
    pairs: Objective | None = None,
    weight: Annotated[float, Range(0, 1e6)] = 2.0,
    width: Width | None = None,
    depth: Depth = 3,
    num_heads: Width | None = None,
    mlp_dim: Width | None = None,
    parallel: Fraction = 0.0,
    chunk_size: PositiveInt | None = None,
    dtype: Dtype = "auto",
    remat: RematPolicy = "none",
    rngs: nnx.Rngs,
  ):
    super().__init__(pairs, "image", "tokens")
    if not hasattr(model.image, "tokens"):
      raise UserError(
        f"Captioner needs the tokens of an image, which {type(model.image).__name__} does not "
        "give. Set --config.model.image to a Vit or a BitResnet."
      )
    self.weight, self.parallel, self.chunk_size = weight, parallel, chunk_size
    width, tower = width or model.text.width, cast(Any, model.image)
    self.decoder = TextDecoder(
      vocab_size=model.text.vocab_size,
      context_length=model.text.context_length,
      memory_width=tower.token_width,
      width=width,
      depth=depth,
      num_heads=num_heads or max(1, width // 64),
      mlp_dim=mlp_dim or 4 * width,
      dtype=resolve_dtype(dtype),
      remat=remat,
      rngs=rngs,
    )

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs`; the loss of each image's captions and their tokens.

    The latter are "caption_loss", "caption_correct" and "caption_tokens", float32 [B] each: sums
    over the tokens of the cross-entropy, of correct predictions and of 1.

    Raises:
      UserError: the batch has stored features instead of images or tokens.
    """
    tokens, image = batch["tokens"], batch["image"]
    if jnp.issubdtype(tokens.dtype, jnp.floating) or image.ndim == 2:
      raise UserError(
        "Captioner needs images and the tokens of their captions, but the data has stored "
        "features. Train from images, or leave the objective Captioner out."
      )
    shared: Any = SharedTowers.of(model)
    z = self.pairs.embed(shared, batch, train=train, key=key)
    memory = shared.seen_tokens(image, train=train)
    K = 1 if tokens.ndim == 2 else tokens.shape[1]  # Captions per image.
    rows = tokens.reshape(-1, tokens.shape[-1])
    hidden = None
    if train and self.parallel and key is not None:
      draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 0xCA), (K,))
      hidden = (jax.vmap(draw)(key) < self.parallel).reshape(-1)
    with jax.named_scope("text_decoder"):
      features = self.decoder(jnp.repeat(memory, K, axis=0), rows, hidden)
      weights = caption_weights(rows)
      loss, correct = token_cross_entropy(
        self.decoder.head,
        features,
        rows,
        weights,
        vocab_size=self.decoder.vocab_size,
        chunk_size=self.chunk_size,
      )
    of_image = lambda x: x.reshape(-1, K).sum(1)
    z["caption_loss"], z["caption_correct"] = of_image(loss), of_image(correct)
    z["caption_tokens"] = of_image(weights.sum(1))
    return z

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss, float32 [] in nats, and metrics."""
    pairs, metrics = self.pairs.loss(embeddings, train=train)
    sums = (embeddings[f"caption_{name}"].sum() for name in ("loss", "correct", "tokens"))
    loss, correct, tokens = sums
    loss = loss / tokens
    return pairs + self.weight * loss, {
      **metrics,
      "pairs/loss": pairs,
      "caption/loss": loss,
      "caption/accuracy": correct / tokens,
    }


def decoder_of(objective: Any) -> TextDecoder | None:
  """Returns the decoder of a `Captioner` among an objective and those that it wraps, or None."""
  while objective is not None:
    if isinstance(objective, Captioner):
      return objective.decoder
    objective = getattr(objective, "pairs", None)
  return None
