"""SLIP's objective: CLIP, or another objective on pairs, plus SimCLR on two more image views."""

import itertools
from typing import Annotated

from flax import nnx
import jax

from clip_jax import losses
from clip_jax.cli.values import (
  PositiveFloat,
  PositiveFraction,
  PositiveInt,
  Range,
  Width,
  checked,
)
from clip_jax.interfaces import Batch, Metrics, Objective
from clip_jax.model.two_towers import TwoTowers, l2_normalize
from clip_jax.nn.layers import BatchNorm, Linear
from clip_jax.nn.target import Dtype, resolve_dtype
from clip_jax.objectives.added_term import AddedTerm


@checked
class Slip(AddedTerm):
  """A pair objective on "image" and "tokens", plus NT-Xent on "view_a" and "view_b".

  The image tower runs three times. The head takes the views' features before the projection. It
  belongs to the loss and not to the embedding, so its BatchNorm sees the whole batch, on any number
  of devices and with any number of microbatches.

  Args:
    model: the model that is trained; `build` passes it.
    pairs: the pair objective; `Clip()` by default.
    ssl_weight: weight of the NT-Xent loss.
    temperature: temperature of the NT-Xent loss, which is not learned.
    projection_hidden_dim, outputs: the head has two hidden layers of width `projection_hidden_dim`
      and an output layer of width `outputs`.
    keep_patches: fraction of the patches of the two views that the tower sees; `pairs` has its own
      setting for "image".
    chunk_size: chunk size of NT-Xent, in rows of its similarity matrices; all rows by default.
    dtype: dtype the head computes in, a name in `target.DTYPES`; batch statistics and the loss are
      always float32.

  Source: Mu et al. 2022, sec. 3 and algorithm 1; the head as in its code.
  """

  def __init__(
    self,
    *,
    model: TwoTowers,
    pairs: Objective | None = None,
    ssl_weight: Annotated[float, Range(0, 1e6)] = 1.0,
    temperature: PositiveFloat = 0.1,
    projection_hidden_dim: Width = 4096,
    outputs: Width = 256,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    dtype: Dtype = "auto",
    rngs: nnx.Rngs,
  ):
    super().__init__(pairs, "view_a", "view_b")
    self.head = Head(
      model.image.width, projection_hidden_dim, outputs, dtype=resolve_dtype(dtype), rngs=rngs
    )
    self.ssl_weight, self.temperature, self.chunk_size = ssl_weight, temperature, chunk_size
    self.keep_patches = keep_patches

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of `pairs` and the features of both views, [B, D] each."""
    keep = self.keep_patches if train else 1.0
    z = self.pairs.embed(model, batch, train=train, key=key)
    for i, view in enumerate(("view_a", "view_b")):
      # Each view draws its own patches; "image" keeps the patches it would get without SLIP.
      keys = key if key is None else jax.vmap(jax.random.fold_in, (0, None))(key, i)
      z[view] = model.image_features(batch[view], train=train, keep=keep, key=keys)
    return z

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
    """Returns the loss, float32 [] in nats, and the accuracies of pairs and of views.

    Args:
      embeddings: the result of `embed`.
      train: whether the head's BatchNorm uses the statistics of this batch, and updates its running
        averages.
    """
    pairs, metrics = self.pairs.loss(embeddings, train=train)
    # Two separate calls, as in the authors' code: BatchNorm normalises each view on its own.
    z_a, z_b = (l2_normalize(self.head(embeddings[v], train=train)) for v in ("view_a", "view_b"))
    ssl = losses.nt_xent(z_a, z_b, self.temperature, chunk_size=self.chunk_size)
    return pairs + self.ssl_weight * ssl, {
      **metrics,
      "pairs/loss": pairs,
      "ssl/loss": ssl,
      "ssl/accuracy": losses.nt_xent_accuracy(z_a, z_b, chunk_size=self.chunk_size),
    }


class Head(nnx.Module):
  """SimCLR projection head: three linear layers, BatchNorm and ReLU after each but the last."""

  def __init__(self, inputs: int, hidden_dim: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
    widths = (inputs, hidden_dim, hidden_dim, outputs)
    self.layers = nnx.List(
      [Linear(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)]
    )
    self.norms = nnx.List([BatchNorm(hidden_dim, dtype=dtype) for _ in range(2)])

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, D] -> float32 [B, outputs].

    Args:
      train: whether BatchNorm uses the statistics of this batch, or the running averages.
    """
    for layer, norm in zip(self.layers, self.norms):
      x = jax.nn.relu(norm(layer(x), train=train))
    return self.layers[-1](x).astype("float32")
