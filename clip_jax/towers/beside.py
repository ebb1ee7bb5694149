"""Image towers beside each other, each looking at the same image."""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.interfaces import ImageTower
from clip_jax.sharding import on_rows


class Beside(nnx.Module):
  """The features of several towers, one after the other.

  Args:
    towers: for images of one size.

  Raises:
    UserError: they are made for images of different sizes.
  """

  def __init__(self, *, towers: Sequence[ImageTower]):
    sizes = {tuple(tower.image_size) for tower in towers}
    if len(sizes) != 1:
      raise UserError("Towers beside each other see the same image, and these are made for "
                      f"{', '.join(f'{h} x {w}' for h, w in sorted(sizes)) or 'none'}. Set "
                      "image_size of all to the same.")
    self.towers = nnx.List(towers)
    self.image_size, = sizes
    self.width = sum(tower.width for tower in towers)

  def __call__(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
               key: jax.Array | None = None) -> jax.Array:
    """float [B, H, W, 3] -> [B, D], the sum of their widths."""
    found = [tower(image, train=train, keep=keep, key=key) for tower in self.towers]
    return on_rows(jnp.concatenate(found, axis=-1))
