"""Zero-shot classification: the class whose name, put into sentences, is nearest to the image."""

from collections import Counter
from collections.abc import Mapping
import difflib
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluators import templates as prompts
from clip_jax.evaluators.examples import (
    CHUNK, TIE, chunks, field, image_embeddings, places, text_embeddings)
from clip_jax.interfaces import Embedder, Source


class ZeroShot:
  """Accuracy of choosing the class with the highest score; ties count against.

  A class's vector is the normalised mean over its names and all templates of the unit vectors of
  the sentences they make.
  """

  def __init__(self, source: Source, classes: tuple[str, ...] | Mapping[str, Any],
               label: str = "label", templates: str | tuple[str, ...] = "none",
               canonicalise: bool = False, limit: int | None = None):
    """Asks about the records of `source`.

    Args:
      source: records {"image": ..., label: ...}.
      classes: names in the order of the labels 0, 1, ...; or label -> name or several names, where
        only these classes compete (ImageNet-A is 200 of the 1,000).
      label: the field that holds the class: its place in a tuple or its name, or its key in a dict.
      templates: what `templates.templates` takes: "none", "openai_7", "openai_80", a file, or the
        sentences themselves.
      canonicalise: whether names and templates go through `templates.canonical`.
      limit: ask only about this many records, spread evenly over the source; None for all.

    Raises:
      UserError: nothing to ask about, fewer than two classes, a class without a name, or templates
        that are none.
    """
    self._source, self._label = source, label
    self._places, self._limited = places(source, limit), limit is not None
    # Keys as strings, because JSON knows no others and a config must survive it.
    keyed = {str(key): names for key, names in (
        classes.items() if isinstance(classes, Mapping) else enumerate(classes))}
    if len(keyed) < 2:
      raise UserError(
          f"classes={classes!r} has {len(keyed)} classes; expected at least two to choose from.")
    self._keys, self._row = tuple(keyed), {key: i for i, key in enumerate(keyed)}
    names = [(n,) if isinstance(n, str) else tuple(n) for n in keyed.values()]
    for key, own in zip(keyed, names):
      if not own or not all(isinstance(n, str) and n.strip() for n in own):
        raise UserError(
            f"Class {key!r} is called {keyed[key]!r}; expected a name, or several that are not "
            "empty.")
    self._named = {}
    if not isinstance(classes, Mapping):
      # A name that two classes share (ImageNet has such) does not say which is meant.
      count = Counter(name for own in names for name in own)
      self._named = {name: i for i, own in enumerate(names) for name in own if count[name] == 1}
    self._called = tuple(own[0] for own in names) if self._named else self._keys
    form = prompts.canonical if canonicalise else str
    sentences = [form(template) for template in prompts.templates(templates)]
    self._texts = [[sentence.replace("{}", form(name)) for name in own for sentence in sentences]
                   for own in names]

  def __call__(self, embedder: Embedder) -> dict[str, float]:
    """`top1` and its `standard_error` (binomial), `mean_per_class`, `chance` and, where there are
    more than five classes, `top5`, all in percent; `examples` and `classes`.

    Raises:
      UserError: a record without image or label, a label that is no class, a class with no images.
    """
    z_class = class_embeddings(embedder, self._texts)
    rank, truth = [], []
    for records in chunks(self._source, self._places):
      rows = np.array([self._place(field(record, self._label, place), place)
                       for place, record in records])
      rank.append(class_ranks(image_embeddings(embedder, records), z_class, rows))
      truth.append(rows)
    rank, truth = np.concatenate(rank), np.concatenate(truth)
    seen = np.bincount(truth, minlength=len(self._keys))
    if not self._limited and not seen.all():
      empty = [name for name, n in zip(self._called, seen) if not n]
      raise UserError(
          f"{len(empty)} of {len(self._keys)} classes have no images, the first: "
          f"{', '.join(map(repr, empty[:5]))}. The mean over classes needs some of each; leave "
          "them out of classes={label: name}, or add images.")
    hits = np.bincount(truth, rank < 1, len(self._keys))[seen > 0] / seen[seen > 0]
    top1, n = float(np.mean(rank < 1)), len(rank)
    return {
        "top1": 100 * top1,
        **({"top5": 100 * float(np.mean(rank < 5))} if len(self._keys) > 5 else {}),
        "mean_per_class": 100 * float(hits.mean()),
        "standard_error": 100 * (top1 * (1 - top1) / n) ** .5,
        "chance": 100 / len(self._keys),
        "examples": float(n), "classes": float(len(self._keys))}

  def _place(self, label: Any, place: int) -> int:
    key = label.decode() if isinstance(label, bytes) else str(label)
    if isinstance(label, (str, bytes)) and key in self._named:
      return self._named[key]
    if key not in self._row:
      close = difflib.get_close_matches(key, self._called, 1)
      raise UserError(
          f"Record {place} has {self._label} {label!r}, which is none of the {len(self._keys)} "
          f"classes: {', '.join(self._called[:10])}{', ...' if len(self._keys) > 10 else ''}."
          + (f" Did you mean {close[0]!r}?" if close else "")
          + " Add it to classes, or leave its records out of the source.")
    return self._row[key]


def class_embeddings(embedder: Embedder, texts: list[list[str]]) -> np.ndarray:
  """float32 [C, E], the normalised mean of the embeddings of each class's texts."""
  z = []
  group = max(1, CHUNK // max(map(len, texts)))  # Classes at a time: 1,000 of 80 are much text.
  for start in range(0, len(texts), group):
    own = texts[start:start + group]
    flat = text_embeddings(embedder, [text for one in own for text in one])
    edges = np.cumsum([len(one) for one in own])[:-1]
    z += [part.mean(0) for part in np.split(flat, edges)]
  z = np.stack(z)
  return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def class_ranks(z_image: np.ndarray, z_class: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """How many wrong classes score at least as high as the right one; what is not a number does.

  Args:
    z_image: float32 [n, E].
    z_class: float32 [C, E].
    truth: int [n], the right class.

  Returns:
    int64 [n].
  """
  scores = z_image @ z_class.T  # [n, C]
  own = np.take_along_axis(scores, truth[:, None], 1)
  wrong = np.arange(len(z_class)) != truth[:, None]
  # Not "scores >= ...", which is false of NaN: a diverged model would know everything.
  return (wrong & ~(scores < own - TIE)).sum(1)
