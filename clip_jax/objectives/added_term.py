"""The base of objectives that add a term to an objective on pairs, and towers that they share."""

from typing import Any

from flax import nnx
import jax

from clip_jax.interfaces import Objective
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.base import set_logit
from clip_jax.objectives.clip import Clip


class AddedTerm(nnx.Module):
  """Has the logit of the pair objective that it wraps.

  Objectives that add a term can be nested: the pair objective of one may be another one.

  Args:
    pairs: the pair objective; `Clip()` if None.
    inputs: batch entries that the term reads, in addition to those of `pairs`.
  """

  def __init__(self, pairs: Objective | None, *inputs: str):
    self.pairs = Clip() if pairs is None else pairs
    self.inputs = tuple(dict.fromkeys((*self.pairs.inputs, *inputs)))

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """(scale, bias) that turn a cosine similarity into a logit, float32 [] each."""
    return self.pairs.logit()

  def set_logit(self, scale: float, bias: float) -> None:
    """Starts from the scale and bias of a trained model, see `Clip`."""
    set_logit(self.pairs, scale, bias)


class SharedTowers:
  """A model that remembers the features of the images that it has seen within one `embed`.

  Several terms of an objective can so read the features of an image, with the patches that the pair
  objective keeps, although the image tower runs on it only once.
  """

  def __init__(self, model: TwoTowers):
    self._model = model
    self._features: list[tuple[jax.Array, jax.Array]] = []

  @classmethod
  def of(cls, model: Any) -> "SharedTowers":
    """Returns `model` if it remembers features already, and wraps it otherwise."""
    return model if isinstance(model, cls) else cls(model)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def image_features(self, image: jax.Array, **options: Any) -> jax.Array:
    """As `TwoTowers.image_features`; the result is remembered."""
    features = self._model.image_features(image, **options)
    self._features.append((image, features))
    return features

  def encode_image(self, image: jax.Array, **options: Any) -> jax.Array:
    """As `TwoTowers.encode_image`; the features are remembered."""
    return self._model.project_image(self.image_features(image, **options))

  def seen_features(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Returns the features of an image, [B, D], that were computed first, or computes them."""
    for other, features in self._features:
      if other is image:
        return features
    return self.image_features(image, train=train)
