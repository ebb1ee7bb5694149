"""Random horizontal flips on the host."""

import numpy as np

from clip_jax.cli.values import Probability, checked


@checked
class HorizontalFlip:
  """Flips the image horizontally with the given probability; `__call__(image, rng)`."""

  def __init__(self, probability: Probability = 0.5):
    self.probability = probability

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3], a view of the input."""
    return image[:, ::-1] if rng.random() < self.probability else image
