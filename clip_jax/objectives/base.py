"""The base of objectives on image-text pairs: how a batch is embedded."""

from flax import nnx
import jax

from clip_jax.cli.values import PositiveFraction, PositiveInt, checked
from clip_jax.interfaces import Batch
from clip_jax.model.two_towers import TwoTowers


@checked
class PairObjective(nnx.Module):
  """Embeds images and texts with their towers, optionally with only a subset of the patches.

  Args:
    keep_patches: fraction of the patches that the image tower sees in training, an independent
      random subset of each image (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B similarity matrix; all rows by default.
  """

  inputs = ("image", "tokens")

  def __init__(
    self, *, keep_patches: PositiveFraction = 1.0, chunk_size: PositiveInt | None = None
  ):
    self.keep_patches, self.chunk_size = keep_patches, chunk_size

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of images and texts, [B, E] each, unit length."""
    keep = self.keep_patches if train else 1.0
    return {
      "image": model.encode_image(batch["image"], train=train, keep=keep, key=key),
      "text": model.encode_text(batch["tokens"], train=train),
    }
