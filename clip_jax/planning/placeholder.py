"""Stand-ins for the data of a run that is planned where the data is not."""

from typing import Annotated, Any

import numpy as np

from clip_jax.cli.values import Range, checked


@checked
class PlaceholderSource:
  """A stand-in for records that are not on this machine: grey images, in practically any number."""

  def __init__(self, texts: Annotated[int, Range(1, 1000)]):
    self.texts = texts

  def __len__(self) -> int:
    return 10**12

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {"image": np.full((64, 64, 3), 128, np.uint8), "text": ["a"] * self.texts}
