"""The base of objectives that add a term to an objective on pairs, and towers that they share."""

from typing import Any

from flax import nnx
import jax

from clip_jax.errors import UserError
from clip_jax.interfaces import Objective
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.base import set_logit
from clip_jax.objectives.clip import Clip


class AddedTerm(nnx.Module):
  """Has the logit of the pair objective that it wraps.

  Objectives that add a term can be nested: the pair objective of one may be another one.

  Args:
    pairs: the pair objective; `Clip()` if None.
    *inputs: batch entries that the term reads, in addition to those of `pairs`.

  Raises:
    UserError: `pairs` selects rows of the batch, which only the outermost objective can.
  """

  def __init__(self, pairs: Objective | None, *inputs: str):
    self.pairs = Clip() if pairs is None else pairs
    if hasattr(self.pairs, "select"):
      raise UserError(
        f"{type(self.pairs).__name__} selects rows for the whole step, so it must be the outermost "
        f"objective. Let its pairs be the {type(self).__name__}."
      )
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
    self._seen: list[tuple[jax.Array, jax.Array | None, jax.Array]] = []

  @classmethod
  def of(cls, model: Any) -> "SharedTowers":
    """Returns `model` if it remembers features already, and wraps it otherwise."""
    return model if isinstance(model, cls) else cls(model)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def image_features(self, image: jax.Array, **options: Any) -> jax.Array:
    """As `TwoTowers.image_features`; the result is remembered."""
    return self._run(image, options)[1]

  def encode_image(self, image: jax.Array, **options: Any) -> jax.Array:
    """As `TwoTowers.encode_image`; the features are remembered."""
    return self._model.project_image(self.image_features(image, **options))

  def seen_features(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Returns the features of an image, [B, D], that were computed first, or computes them."""
    return self._first(image, train)[1]

  def seen_tokens(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Returns the tokens of an image that belong to `seen_features`, [B, N, D]."""
    tokens = self._first(image, train)[0]
    assert tokens is not None  # Objectives check that the tower has tokens.
    return tokens

  def _first(self, image, train):
    for other, tokens, features in self._seen:
      if other is image:
        return tokens, features
    return self._run(image, {"train": train})

  def _run(self, image, options):
    if image.ndim > 2 and hasattr(self._model.image, "tokens"):
      tokens, features = self._model.image_tokens(image, **options)
    else:
      tokens, features = None, self._model.image_features(image, **options)
    self._seen.append((image, tokens, features))
    return tokens, features
