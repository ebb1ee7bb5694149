"""The base of objectives on image-text pairs: how a batch is embedded."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax

from clip_jax.cli.values import PositiveFraction, PositiveInt, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import Batch
from clip_jax.losses import SameGroup
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.caption_groups import row_hashes


@checked
class PairObjective(nnx.Module):
  """Embeds images and texts with their towers, optionally with only a subset of the patches.

  If the views yield several captions per image, as `Views(captions_per_image=K)` does, each image
  is compared with the batch's first captions, its second ones, and so on, and the loss is the mean
  over the K. The captions of one image are then never negatives of each other.

  Args:
    keep_patches: fraction of the patches that the image tower sees in training, an independent
      random subset of each image (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B similarity matrix; all rows by default.
    same_caption: what an image and the caption of another row are if the captions are the same: a
      "negative" pair as any other, a "positive" pair, or left out of the loss ("ignore"). With
      InfoNCE and group="tokens", "positive" is the same as "negative", see `losses.info_nce`; it
      matters for SigLIP, and for groups of different texts.
    group: entry of the batch that decides which captions are the same. "tokens" compares what the
      text tower sees. Another entry has an int or a row of ints per example, such as "group" of
      `Views(group="FIELD")`, or "index".
  """

  inputs: tuple[str, ...] = ("image", "tokens")

  def __init__(
    self,
    *,
    keep_patches: PositiveFraction = 1.0,
    chunk_size: PositiveInt | None = None,
    same_caption: SameGroup = "negative",
    group: str = "tokens",
  ):
    self.keep_patches, self.chunk_size = keep_patches, chunk_size
    self.same_caption, self.group = same_caption, group
    if same_caption != "negative" and group not in self.inputs:
      self.inputs = (*self.inputs, group)

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of images and texts, unit length.

    Returns:
      "image" [B, E]; "text" [B, E], or [B, K, E] if "tokens" is [B, K, L]; and, if the objective
      uses them, the hash of each caption's group, "group", uint32 [B, 2] or [B, K, 2].
    """
    keep = self.keep_patches if train else 1.0
    tokens = batch["tokens"]
    text = model.encode_text(tokens.reshape(-1, tokens.shape[-1]), train=train)
    z = {
      "image": model.encode_image(batch["image"], train=train, keep=keep, key=key),
      "text": text if tokens.ndim == 2 else text.reshape(*tokens.shape[:-1], -1),
    }
    if self.same_caption != "negative":
      rows = batch[self.group]
      z["group"] = row_hashes(rows if self.group == "tokens" else rows.reshape(len(rows), -1))
    return z

  def mean_over_captions(
    self, pair_loss: Callable[..., tuple[jax.Array, ...]], embeddings: dict[str, jax.Array]
  ) -> tuple[jax.Array, ...]:
    """Averages a loss over the captions of each image.

    Args:
      pair_loss: (z_image [B, E], z_text [B, E], groups uint32 [B, 2] or None) -> scalars.
      embeddings: the result of `embed`.

    Returns:
      Each scalar's mean over the captions.
    """
    z_image, z_text = embeddings["image"], embeddings["text"]
    groups = embeddings.get("group")
    if z_text.ndim == 2:
      return pair_loss(z_image, z_text, groups)
    K = z_text.shape[1]
    own = lambda k: groups if groups is None or groups.ndim == 2 else groups[:, k]
    found = [pair_loss(z_image, z_text[:, k], own(k)) for k in range(K)]
    return tuple(sum(values) / K for values in zip(*found))


def set_logit(objective: Any, scale: float, bias: float) -> None:
  """Starts an objective's learned scale and bias from those of a trained model.

  Raises:
    UserError: the objective has no `set_logit` method, or cannot take these values.
  """
  if not hasattr(objective, "set_logit"):
    raise UserError(
      f"{type(objective).__name__} cannot start from a trained logit scale, because it has no "
      "method set_logit(scale, bias). Write one, or set --config.train.init_logit=False."
    )
  objective.set_logit(scale, bias)
