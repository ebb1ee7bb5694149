"""The base of objectives on image-text pairs: how a batch is embedded."""

from flax import nnx
import jax

from clip_jax.errors import UserError
from clip_jax.interfaces import Batch
from clip_jax.model.two_towers import TwoTowers


class PairObjective(nnx.Module):
  """Embeds images and texts with their towers, optionally with only a subset of the patches.

  Args:
    keep_patches: fraction of the patches that the image tower sees in training, an independent
      random subset of each image (FLIP).
    chunk_size: chunk size of the loss, in rows of the B x B similarity matrix; all rows by default.

  Raises:
    UserError: `keep_patches` is not in (0, 1].
  """

  inputs = ("image", "tokens")

  def __init__(self, *, keep_patches: float = 1.0, chunk_size: int | None = None):
    self.keep_patches, self.chunk_size = check_keep_fraction(keep_patches), chunk_size

  def embed(
    self, model: TwoTowers, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of images and texts, [B, E] each, unit length."""
    keep = self.keep_patches if train else 1.0
    return {
      "image": model.encode_image(batch["image"], train=train, keep=keep, key=key),
      "text": model.encode_text(batch["tokens"], train=train),
    }


def check_keep_fraction(keep_patches: float) -> float:
  """Returns `keep_patches` if it is in (0, 1]; a percentage would silently keep all patches."""
  if not 0 < keep_patches <= 1:
    raise UserError(
      f"keep_patches {keep_patches} is not a fraction of the patches. Set it above 0 "
      "and at most 1 (all patches), as in keep_patches=0.5."
    )
  return keep_patches
