"""Ranks the images of an index by a text, an image, or both."""

from collections import OrderedDict
import dataclasses
import hashlib
import threading

import numpy as np

from clip_jax.inference.embedder import Embedder
from clip_jax.inference.image_index import ImageIndex

_KEPT = 16  # Rankings that are kept, so that the next page of results costs nothing.


@dataclasses.dataclass(frozen=True)
class Query:
  """What to search for. Without a text and an image, all images are in random order.

  Attributes:
    text: a description; "" for none.
    like: number of an image of the index, or None.
    image: an encoded image, or None; takes precedence over `like`.
    labels: other descriptions, among which the probability of `text` is computed.
    seed: of the random order.
  """

  text: str = ""
  like: int | None = None
  image: bytes | None = None
  labels: tuple[str, ...] = ()
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Ranking:
  """All images of an index, ranked.

  Attributes:
    order: numbers of the images, best first, integer [n].
    scores: cosine similarity of each image, in the order of the index, float32 [n], by what it was
      compared with: "text", "image". Empty for a random order.
    probability: of the text among the text and the labels, float32 [n], or None.
  """

  order: np.ndarray
  scores: dict[str, np.ndarray]
  probability: np.ndarray | None = None


class PictureSearch:
  """Searches an index with the model that made it; may be called from several threads."""

  def __init__(self, embedder: Embedder, index: ImageIndex):
    """Stores the model and the index."""
    self._embedder, self._z = embedder, index.z
    self._rankings: OrderedDict[Query, Ranking] = OrderedDict()
    self._lock = threading.Lock()  # One search at a time.

  def __call__(self, query: Query) -> Ranking:
    """Returns the ranking for a query.

    A text and an image are combined by the sum of their cosines, each divided by its standard
    deviation over the index. Cosines between images usually vary more than those between texts and
    images, so that in a plain sum the image alone would decide.

    Raises:
      IndexError: the index has no image `like`.
      UnreadableImage: `image` cannot be decoded.
    """
    # Keep the hash of an uploaded image, not the image.
    digest = query.image and hashlib.sha256(query.image).digest()
    key = dataclasses.replace(query, image=digest)
    with self._lock:
      if key in self._rankings:
        self._rankings.move_to_end(key)
        return self._rankings[key]
      ranking = self._rank(query)
      self._rankings[key] = ranking
      if len(self._rankings) > _KEPT:
        self._rankings.popitem(last=False)
      return ranking

  def _rank(self, query):
    scores, texts = {}, [query.text, *query.labels] if query.text else []
    probability = None
    if texts:
      cosines = self._z @ self._embedder.encode_text(texts).T
      scores["text"] = cosines[:, 0]
      if query.labels:
        logits = self._embedder.scale * cosines
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = weights[:, 0] / weights.sum(axis=1)
    if query.image is not None:
      scores["image"] = self._z @ self._embedder.encode_image([query.image])[0]
    elif query.like is not None:
      if not 0 <= query.like < len(self._z):
        raise IndexError(query.like)
      scores["image"] = self._z @ self._z[query.like]
    if not scores:
      return Ranking(np.random.default_rng(query.seed).permutation(len(self._z)), {})
    total = sum(s / max(s.std(), 1e-6) for s in scores.values()) if len(scores) > 1 else None
    by = next(iter(scores.values())) if total is None else total
    return Ranking(np.argsort(-by, kind="stable"), scores, probability)
