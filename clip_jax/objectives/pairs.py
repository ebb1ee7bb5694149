"""What objectives of image-text pairs share: how a batch is embedded."""

from flax import nnx
import jax

from clip_jax.errors import UserError
from clip_jax.interfaces import Batch
from clip_jax.model import TwoTowers


class Pairs(nnx.Module):
  """Embeds images and texts, each with its tower; images without some of their patches if asked.

  Args:
    keep_patches: share of the patches that the image tower sees in training, another random subset
      for each image (FLIP).
    block: rows of the B x B matrix of similarities in memory at once; all of them by default.

  Raises:
    UserError: `keep_patches` is no share.
  """

  inputs = ("image", "tokens")

  def __init__(self, *, keep_patches: float = 1.0, block: int | None = None):
    self.keep_patches, self.block = checked_share(keep_patches), block

  def embed(self, model: TwoTowers, batch: Batch, *, train: bool,
            key: jax.Array | None) -> dict[str, jax.Array]:
    """Unit vectors of images and texts, [B, E] each."""
    keep = self.keep_patches if train else 1.0
    return {
        "image": model.encode_image(batch["image"], train=train, keep=keep, key=key),
        "text": model.encode_text(batch["tokens"], train=train),
    }


def checked_share(keep_patches: float) -> float:
  """`keep_patches`, if it is a share of the patches; a percentage would silently keep them all."""
  if not 0 < keep_patches <= 1:
    raise UserError(f"keep_patches {keep_patches} is not a share of the patches: above 0, and at "
                    "most 1 for all of them, as in keep_patches=0.5.")
  return keep_patches
