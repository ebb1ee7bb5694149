"""Turns records into examples: cropped and augmented images, and tokens."""

from collections.abc import Callable, Sequence
import hashlib
from typing import Annotated, Any, Literal
import zlib

import numpy as np

from clip_jax.cli.values import NonNegativeFloat, OneOf, Range, checked
from clip_jax.data.caption_truncation import TRUNCATIONS
from clip_jax.data.decode import Picture
from clip_jax.errors import UserError
from clip_jax.interfaces import HostAugment, Tokenizer


@checked
class ImageView:
  """Crops an image, then applies augmentations in order."""

  def __init__(self, crop: Callable, augment: Sequence[HostAugment] = ()):
    """Stores the steps.

    Args:
      crop: `crop(image, rng)` -> uint8 [H, W, 3]; accepts encoded bytes, pixels or a `Picture`.
      augment: augmentations, each `augment(image, rng)`, uint8 to uint8.
    """
    self.crop, self.augment = crop, tuple(augment)

  def __call__(self, image: Any, rng: np.random.Generator) -> np.ndarray:
    """Encoded bytes, uint8 [H, W, 3] or a `Picture` -> uint8 [H', W', 3]."""
    image = self.crop(image, rng)
    for augment in self.augment:
      image = augment(image, rng)
    return image


@checked
class Views:
  """Converts a record to an example: named uint8 images, and "tokens".

  Attributes:
    images: the image views by name.
    tokenizer: converts the text to "tokens".
    preprocess: how images are prepared when the model is used; None for squashed.
    outputs: names of the entries of an example.
  """

  def __init__(
    self,
    images: dict[str, ImageView],
    tokenizer: Tokenizer,
    captions: Literal["random", "first"] | tuple[NonNegativeFloat, ...] = "random",
    shorten: Annotated[str, OneOf(TRUNCATIONS)] = "first",
    captions_per_image: Annotated[int, Range(1, 64)] = 1,
    group: str | None = None,
    preprocess: Callable | None = None,
  ):
    """Checks and stores the settings.

    Args:
      images: views by name of the batch entry, {"image": ImageView(...), ...}.
      tokenizer: texts to int32 [B, L].
      captions: how to choose among several texts of a record: "random" draws one at each visit,
        "first" takes the first, and a tuple of weights draws with these probabilities, one weight
        per text (a source with several text fields yields them in its own order).
      shorten: which tokens to keep of a text longer than the tokenizer's context length: the
        "first", a "random" subset in text order, or a contiguous "block" at a random place (CLIPA).
      captions_per_image: K, number of a record's texts that are used in one step. If it is more
        than 1, "tokens" is [K, L], from K different texts that are chosen as `captions` says: with
        "first" the first K, otherwise K that are drawn without replacement. A record with fewer
        texts repeats them.
      group: field of the records whose equal values make a group, for the `same_caption` of an
        objective; a record where it is None is a group of its own. Adds the entry "group". None
        for no such entry.
      preprocess: how images are prepared when the model is used, `preprocess(image)` -> uint8
        [H, W, 3]: in evaluations, by `load` and in exports. By default they are squashed to the
        model's size.

    Raises:
      UserError: no image view, a reserved name, or no positive weight in `captions`.
    """
    if not images:
      raise UserError('No image view; give at least {"image": ImageView(...)}.')
    reserved = {"tokens", "group", "index", "replaced", "damaged"} & set(images)
    if reserved:
      raise UserError(
        f"Image view name {', '.join(sorted(reserved))} is reserved for an entry "
        "that the pipeline adds. Rename the view."
      )
    weights = () if isinstance(captions, str) else captions
    if not isinstance(captions, str) and not sum(weights) > 0:
      raise UserError(
        f"The weights captions={captions!r} have no positive one; expected (0.7, 0.3)."
      )
    self.images, self.tokenizer, self.captions = dict(images), tokenizer, captions
    self.shorten, self.captions_per_image, self.group = shorten, captions_per_image, group
    self._weights = np.array(weights, np.float64)
    self.preprocess = preprocess
    self._cumulative = np.cumsum(weights) / np.sum(weights) if weights else None

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of the entries of an example."""
    return (*self.images, "tokens") if self.group is None else (*self.images, "tokens", "group")

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record -> {"image": uint8 [H, W, 3], ..., "tokens": int32 [L] or [K, L]}.

    Each view's random generator is keyed by the view's name, so adding or removing a view does not
    change the others.

    Raises:
      UnreadableImage: the image is damaged.
      UserError: the record lacks an image or a text, or has more or fewer texts than weights.
    """
    seed = rng.integers(2**64, dtype=np.uint64)

    def generator(name):
      return np.random.Generator(
        np.random.Philox(key=np.array([seed, zlib.crc32(name.encode())], np.uint64))
      )

    missing = [name for name in ("image", "text") if name not in record]
    if missing:
      raise UserError(
        f"A record has no {' and no '.join(map(repr, missing))}; it has "
        f"{', '.join(map(repr, record))}. Rename the fields in the source."
      )
    picture = Picture(record["image"])
    example = {name: view(picture, generator(name)) for name, view in self.images.items()}
    text = record["text"]
    if self.captions_per_image > 1:
      chosen = self._choose_texts([text] if isinstance(text, str) else text, generator)
      rows = [self._tokens(text, generator, f"/{k}") for k, text in enumerate(chosen)]
      example["tokens"] = np.stack(rows)
    else:
      if not isinstance(text, str):
        text = self._choose_text(text, generator)
      example["tokens"] = self._tokens(text, generator)
    if self.group is not None:
      example["group"] = self._group(record, generator)
    return example

  def _group(self, record, generator):
    """Returns the hash of the record's group, uint32 [2]."""
    if self.group not in record:
      raise UserError(
        f"A record has no field {self.group!r} for group=; it has {', '.join(map(repr, record))}. "
        "Set group to one of them, or to None."
      )
    value = record[self.group]
    if value is None:
      return generator("group").integers(2**32, size=2, dtype=np.uint32)
    content = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint32)

  def _tokens(self, text, generator, suffix=""):
    """Tokenizes one text, int32 [L], shortening it as configured."""
    truncate = TRUNCATIONS[self.shorten]
    if truncate is None:
      return self.tokenizer([text])[0]
    rng = generator(f"tokens/shorten{suffix}")
    tokenizer: Any = self.tokenizer  # One that also accepts `keep=`.
    return tokenizer([text], keep=lambda n, max_tokens: truncate(n, max_tokens, rng))[0]

  def _choose_text(self, texts, generator):
    """Chooses one of a record's texts."""
    if not texts:
      return ""
    if self.captions == "first":
      return texts[0]
    draw = generator("tokens").random()
    if self.captions == "random":
      return texts[int(draw * len(texts))]
    self._check_weights(texts)
    return texts[int(np.searchsorted(self._cumulative, draw, side="right"))]

  def _choose_texts(self, texts, generator):
    """Chooses `captions_per_image` of a record's texts; repeats them if there are fewer."""
    order = np.arange(len(texts))
    if not len(texts):
      texts, order = [""], np.zeros(1, int)
    elif self.captions != "first":
      # Sorted by log(u) / weight, the first k are a weighted draw of k without replacement
      # (Efraimidis and Spirakis 2006).
      draw = np.log(1 - generator("tokens").random(len(texts)))
      if self.captions != "random":
        self._check_weights(texts)
        order = np.flatnonzero(self._weights)
        draw = draw[order] / self._weights[order]
      order = order[np.argsort(-draw)]
    return [texts[k] for k in np.resize(order, self.captions_per_image)]

  def _check_weights(self, texts):
    if len(texts) != len(self._weights):
      raise UserError(
        f"captions has {len(self._weights)} weights, but a record has {len(texts)} "
        'texts. Use captions="random" if the number of texts varies.'
      )
