"""Several image towers on the same image, with concatenated features."""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.cli.values import checked
from clip_jax.errors import UserError
from clip_jax.interfaces import ImageTower
from clip_jax.parallel.placement import shard_batch


@checked
class ConcatTowers(nnx.Module):
  """Concatenates the features of several image towers.

  Args:
    towers: image towers with the same image_size.

  Raises:
    UserError: the towers have different image sizes, or there are none.
  """

  def __init__(self, *, towers: Sequence[ImageTower]):
    sizes = {tuple(tower.image_size) for tower in towers}
    if len(sizes) != 1:
      raise UserError(
        "ConcatTowers needs towers with the same image_size, but got "
        f"{', '.join(f'{h} x {w}' for h, w in sorted(sizes)) or 'no towers'}. Set "
        "the same image_size for all of them."
      )
    self.towers = nnx.List(towers)
    (self.image_size,) = sizes
    self.width = sum(tower.width for tower in towers)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """float [B, H, W, 3] -> [B, D], where D is the sum of the towers' widths."""
    found = [tower(image, train=train, keep=keep, key=key) for tower in self.towers]
    return shard_batch(jnp.concatenate(found, axis=-1))
