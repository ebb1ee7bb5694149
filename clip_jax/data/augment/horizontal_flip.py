"""Random horizontal flips on the host."""

import numpy as np

from clip_jax.errors import UserError


class HorizontalFlip:
  """Flips the image horizontally with the given probability; `__call__(image, rng)`."""

  def __init__(self, probability: float = 0.5):
    if not 0 <= probability <= 1:
      raise UserError(f"probability {probability} is not between 0 and 1.")
    self.probability = probability

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3], a view of the input."""
    return image[:, ::-1] if rng.random() < self.probability else image
