"""Turns records with stored embeddings into examples."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from clip_jax.cli.values import checked
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.decode import Picture
from clip_jax.data.embedding_store import view_rng
from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer


@checked
class StoredViews:
  """Converts a record of `WithEmbeddings` to an example.

  One of the stored views of the image and one of the stored texts are drawn at each visit. The
  model gets the pixels or tokens, or the stored features of a tower, which is then not run. With
  `teacher`, the stored unit vectors of the same view and text are added as "teacher_image" and
  "teacher_text", for the objective `Distill`.

  Attributes:
    tokenizer: converts texts to tokens.
    preprocess: how images are prepared when the model is used; None for squashed.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    image: Literal["features", "pixels"] = "features",
    text: Literal["features", "tokens"] = "tokens",
    crop: Callable | None = None,
    teacher: bool = False,
    preprocess: Callable | None = None,
  ):
    """Checks and stores the settings.

    Args:
      tokenizer: texts to int32 [B, L].
      image: "features", float16 [D], or "pixels", uint8 [H, W, 3].
      text: "features", float16 [D'], or "tokens", int32 [L].
      crop: for "pixels", the crop of this model: a `RandomResizedCrop`, which gets the scale and
        the random numbers of the stored view and so cuts the same box, or any other
        `crop(image, rng)` if the stored views are not cropped.
      teacher: whether to add the stored unit vectors.
      preprocess: how images are prepared when the model is used, as in `Views`.

    Raises:
      UserError: "pixels" without a crop.
    """
    if image == "pixels" and crop is None:
      raise UserError('StoredViews with image="pixels" needs crop=call(RandomResizedCrop, ...).')
    self.tokenizer, self.image, self.text, self.crop = tokenizer, image, text, crop
    self.teacher, self.preprocess = teacher, preprocess

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of the entries of an example."""
    return ("image", "tokens", *(("teacher_image", "teacher_text") if self.teacher else ()))

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record -> an example.

    Raises:
      UserError: the record has no stored embeddings, or not those that are needed.
    """
    stored = record.get("stored")
    if stored is None:
      raise UserError("StoredViews needs a source with embeddings: call(WithEmbeddings, ...).")
    some = next(x for name, x in stored.items() if name.startswith("image_"))
    view, text = int(rng.integers(len(some))), int(rng.integers(max(1, int(stored["texts"]))))
    example = {}
    if self.image == "features":
      example["image"] = _entry(stored, "image_features")[view]
    else:
      example["image"] = self._pixels(record["image"], stored, view)
    texts = record["text"]
    if self.text == "features":
      example["tokens"] = _entry(stored, "text_features")[text]
    else:
      texts = [texts] if isinstance(texts, str) else texts
      example["tokens"] = self.tokenizer([texts[text] if texts else ""])[0]
    if self.teacher:
      example["teacher_image"] = _entry(stored, "image_embeddings")[view]
      example["teacher_text"] = _entry(stored, "text_embeddings")[text]
    return example

  def _pixels(self, image, stored, view):
    crop, scale = self.crop, stored["scale"]
    if isinstance(crop, RandomResizedCrop):
      crop = crop.with_scale((scale, 1.0) if scale else (1.0, 1.0))
    return crop(Picture(image), view_rng(stored["seed"], stored["record"], view))


def _entry(stored, name):
  if name not in stored:
    raise UserError(
      f"The stored embeddings have no {name}, only {', '.join(n for n in stored if '_' in n)}. "
      "Rerun clip-jax embed with --what=features,embeddings."
    )
  return stored[name]
