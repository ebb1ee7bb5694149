"""A linear model from edges and colours to words, as a baseline for other evaluators."""

from collections import Counter
from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax
import numpy as np

from clip_jax.cli.values import Pixels, PositiveFloat, PositiveInt, Records, checked
from clip_jax.data.crops import Resize
from clip_jax.evaluators.embedding_cache import EmbeddingCache
from clip_jax.evaluators.results import Context, Evaluator, Result, evaluated_records
from clip_jax.interfaces import Source
from clip_jax.towers.hog import Hog

_BATCH = 256


@checked
class LinearBaseline(Evaluator):
  """Results of other evaluators for a linear model from edges and colours to the words of captions.

  The model is fitted to training records in closed form, so that a trained model can be compared
  with what needs no training. Features are histograms of oriented gradients and mean colours (see
  `Hog`). Targets are the words of the first text of a record, each weighted by its inverse document
  frequency, scaled to unit length.
  """

  def __init__(
    self,
    train: Source,
    evaluators: Mapping[str, Any],
    image_size: Pixels = 48,
    limit: Records | None = 50_000,
    words: PositiveInt = 2000,
    penalty: PositiveFloat = 100.0,
  ):
    """Creates the evaluator.

    Args:
      train: training records {"image": ..., "text": str or list of str}.
      evaluators: the evaluators by name.
      image_size: side in pixels that images are resized to, a multiple of 8.
      limit: maximum number of training records, spread evenly over the source; None for all.
      words: number of the most frequent words to predict.
      penalty: L2 penalty of the weights of standardised features.
    """
    self._train, self._evaluators = train, dict(evaluators)
    self._places = evaluated_records(train, limit)
    self._size, self._words, self._penalty = image_size, words, penalty

  def evaluate(self, context: Context) -> Result:
    """Fits the model; returns all metrics of the evaluators as "evaluator/metric"."""
    model = LinearWords(self._size, self._words)
    records = (self._train[int(i)] for i in self._places)
    model.fit(records, self._penalty)
    inner = Context(EmbeddingCache(model))
    metrics = {}
    for name, evaluator in self._evaluators.items():
      result = evaluator.evaluate(inner)
      metrics |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
    return Result(metrics, {"records": len(self._places), "words": len(model.column)})


class LinearWords:
  """The model: images and texts are embedded as weights of words.

  Attributes:
    column: number of each word that is predicted.
  """

  def __init__(self, image_size: int, words: int):
    self.column: dict[str, int] = {}
    self._words = words
    hog = Hog(image_size=image_size, dtype="float32")
    self._features = jax.jit(lambda images: hog(images.astype("float32") / 127.5 - 1))
    self._resize = Resize(image_size)

  def fit(self, records: Any, penalty: float) -> None:
    """Fits the weights by ridge regression to the words of the records' first texts."""
    images, texts, x = [], [], []
    for record in records:
      text = record["text"]
      texts.append(_words(text if isinstance(text, str) else text[0]))
      images.append(self._resize(record["image"]))
      if len(images) == _BATCH:
        x.append(self._hog(images))
        images = []
    if images:
      x.append(self._hog(images))
    seen = Counter(word for text in texts for word in set(text))
    self.column = {word: i for i, (word, _) in enumerate(seen.most_common(self._words))}
    self._idf = np.log(len(texts) / np.array([seen[word] for word in self.column], np.float64))
    features = np.concatenate(x)
    self._mean, self._std = features.mean(0), features.std(0) + 1e-3
    a, b = self._standardised(features), self._bags(texts)
    gram = a.T @ a + penalty * np.eye(a.shape[1])
    self._weights = np.linalg.solve(gram, a.T @ b)

  def encode_image(self, images: Any) -> np.ndarray:
    """Images, as a list of what `Resize` accepts -> float32 [B, E], unit length."""
    pixels = [self._resize(image) for image in images]
    parts = [self._hog(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]
    return _unit(self._standardised(np.concatenate(parts)) @ self._weights)

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> float32 [B, E], unit length; zeros for a text without known words."""
    return self._bags([_words(text) for text in texts]).astype(np.float32)

  def _hog(self, images):
    batch = np.zeros((_BATCH, *images[0].shape), np.uint8)  # One shape, so that it compiles once.
    batch[: len(images)] = images
    return np.asarray(self._features(batch))[: len(images)]

  def _standardised(self, features):
    return np.pad((features - self._mean) / self._std, ((0, 0), (0, 1)), constant_values=1.0)

  def _bags(self, texts):
    bags = np.zeros((len(texts), len(self.column)), np.float32)
    for row, text in zip(bags, texts):
      for word in text:
        if word in self.column:
          row[self.column[word]] = self._idf[self.column[word]]
    return _unit(bags)


def _words(text):
  return re.findall(r"\w+", text.lower())


def _unit(x):
  return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
