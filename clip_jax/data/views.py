"""What a model sees of a record: images cropped and augmented, and tokens."""

from collections.abc import Callable, Sequence
from typing import Any
import zlib

import numpy as np

from clip_jax.data.decode import Picture
from clip_jax.data.shorten import WAYS
from clip_jax.errors import UserError
from clip_jax.interfaces import HostAugment, Tokenizer


class ImageView:
  """One way of seeing an image: a crop, then augmentations in order."""

  def __init__(self, crop: Callable, augment: Sequence[HostAugment] = ()):
    """Notes what to do.

    Args:
      crop: `crop(image, rng)` -> uint8 [H, W, 3]; takes encoded bytes, pixels or a `Picture`.
      augment: each `augment(image, rng)`, uint8 to uint8.
    """
    self.crop, self.augment = crop, tuple(augment)

  def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [H', W', 3]."""
    image = self.crop(image, rng)
    for augment in self.augment:
      image = augment(image, rng)
    return image


class Views:
  """Makes an example of a record: uint8 images by name, and "tokens".

  Attributes:
    images: the image views by name.
    tokenizer: makes "tokens".
    outputs: names of what an example holds.
  """

  def __init__(self, images: dict[str, ImageView], tokenizer: Tokenizer,
               captions: str | tuple[float, ...] = "random", shorten: str = "first"):
    """Notes what to make.

    Args:
      images: views by the name of the batch entry, {"image": ImageView(...), ...}.
      tokenizer: texts to int32 [B, L].
      captions: which text, where a record has several: "random" draws one at each visit, "first"
        takes the first; weights draw by them, one for each place in the list (a source of several
        fields gives them in its own order).
      shorten: which tokens of a text that is longer than the tokenizer's length: its "first", any
        at "random" in their order, or a "block" from anywhere (CLIPA).

    Raises:
      UserError: no view, or captions or shorten that are none of these.
    """
    if not images:
      raise UserError('No image view. Give at least {"image": ImageView(...)}.')
    reserved = {"tokens", "index", "replaced", "damaged"} & set(images)
    if reserved:
      raise UserError(f"No image view can be named {', '.join(sorted(reserved))}; the pipeline "
                      "makes an entry of that name itself.")
    weights = () if isinstance(captions, str) else captions
    if captions not in ("random", "first") and not (
        weights and min(weights) >= 0 and sum(weights) > 0):
      raise UserError(
          f'captions {captions!r} is not "random", "first", or weights such as (0.7, 0.3).')
    if shorten not in WAYS:
      raise UserError(f"shorten {shorten!r} is not {', '.join(map(repr, WAYS))}.")
    self.images, self.tokenizer, self.captions = dict(images), tokenizer, captions
    self.shorten = shorten
    self._shares = np.cumsum(weights) / np.sum(weights) if weights else None

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of what an example holds."""
    return (*self.images, "tokens")

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record -> {"image": uint8 [H, W, 3], ..., "tokens": int32 [L]}.

    Each view has its own random numbers, by its name: a view added or removed changes no other.

    Raises:
      UnreadableImage: the image is damaged.
      UserError: the record has no image, or a number of texts other than that of the weights.
    """
    lot = rng.integers(2**64, dtype=np.uint64)

    def generator(name):
      return np.random.Generator(np.random.Philox(
          key=np.array([lot, zlib.crc32(name.encode())], np.uint64)))

    missing = [name for name in ("image", "text") if name not in record]
    if missing:
      raise UserError(f"A record has no {' and no '.join(map(repr, missing))}; it has "
                      f"{', '.join(map(repr, record))}. Let the source name its fields so.")
    picture = Picture(record["image"])
    example = {name: view(picture, generator(name)) for name, view in self.images.items()}
    text = record["text"]
    if not isinstance(text, str):
      text = self._chosen(text, generator)
    example["tokens"] = self._tokens(text, generator)
    return example

  def _tokens(self, text, generator):
    """int32 [L]."""
    way = WAYS[self.shorten]
    if way is None:
      return self.tokenizer([text])[0]
    rng = generator("tokens/shorten")
    tokenizer: Any = self.tokenizer  # One that takes `keep=` as well.
    return tokenizer([text], keep=lambda n, room: way(n, room, rng))[0]

  def _chosen(self, texts, generator):
    """One of a record's texts."""
    if not texts:
      return ""
    if self.captions == "first":
      return texts[0]
    lot = generator("tokens").random()
    if self.captions == "random":
      return texts[int(lot * len(texts))]
    if len(texts) != len(self._shares):
      raise UserError(f"captions has {len(self._shares)} weights and a record has {len(texts)} "
                      'texts. Weights are for sources with a fixed number of texts; use "random".')
    return texts[int(np.searchsorted(self._shares, lot, side="right"))]
