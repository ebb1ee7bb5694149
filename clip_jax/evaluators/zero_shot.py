"""Zero-shot classification: the class whose name, put into sentences, is nearest to the image."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.evaluators import templates as prompts
from clip_jax.evaluators.accuracy import accuracies, class_ranks
from clip_jax.evaluators.answers import Answer, Question, places, told
from clip_jax.evaluators.classes import Classes
from clip_jax.evaluators.shared import CHUNK, Shared, check_resize
from clip_jax.interfaces import Embedder, Source


class ZeroShot(Question):
  """Accuracy of choosing the class with the highest score; ties count against.

  A class's vector is the normalised mean over its names and all templates of the unit vectors of
  the sentences they make. Of classes with the same sentences (two of ImageNet's are "missile") the
  first is chosen, as by the argmax of other evaluations.
  """

  def __init__(self, source: Source,
               classes: str | tuple[str, ...] | Mapping[str, Any] | None = None,
               label: str = "label", templates: str | tuple[str, ...] = "none",
               canonicalise: bool = False, limit: int | None = None, resize: str | None = None,
               others: str = "error"):
    """Asks about the records of `source`.

    Args:
      source: records {"image": ..., label: ...}.
      classes: what `classes.Classes` takes: "imagenet", "imagenet_a", "imagenet_r", "objectnet";
        names in the order of the labels; label -> name or several, where only these compete; or
        None for the source's own.
      label: the field that holds the class, or a list of right ones; an empty list leaves a record
        out.
      templates: what `templates.templates` takes: "none", "openai_7", "openai_80", a file, or the
        sentences themselves.
      canonicalise: whether names and templates go through `templates.canonical`.
      limit: ask only about this many records, spread evenly over the source; None for all.
      resize: how images are made the model's size, a name in `shared.RESIZES`; None for the
        model's own way.
      others: "error", or "leave_out" for records of classes that do not compete.

    Raises:
      UserError: nothing to ask about, fewer than two classes, a class without a name, or templates
        that are none.
    """
    check_resize(resize)
    self._source, self._resize, self._limited = source, resize, limit is not None
    self._places = places(source, limit)
    self._classes = Classes(source, classes, label, others)
    form = prompts.canonical if canonicalise else str
    self._templates = [form(template) for template in prompts.templates(templates)]
    self._told = {"templates": templates, "sentences": self._templates,
                  "canonicalise": canonicalise,
                  "classes": classes if isinstance(classes, str) else list(self._classes.called)}
    self._texts = [[sentence.replace("{}", form(name)) for name in own
                    for sentence in self._templates] for own in self._classes.names]

  def answer(self, embedder: Embedder) -> Answer:
    """What `accuracy.accuracies` says.

    Raises:
      UserError: a record without image or label, a label that is no class, a class with no images.
    """
    shared, classes = Shared.of(embedder), self._classes
    images = shared.images(self._source, self._places, fields=(classes.label,),
                           resize=self._resize)
    labels = [record[classes.label] for record in images.records]
    asked, right = classes.right(labels, self._places)
    # Several right ones mean ReaL, where the raters may have found no good image of a class.
    if not self._limited and not any(isinstance(label, (list, tuple)) for label in labels):
      classes.check_seen(right)
    z_class = class_embeddings(shared, self._texts)
    first = {}
    twins = np.array([first.setdefault(tuple(texts), row) for row, texts in enumerate(self._texts)])
    rank = class_ranks(images.z[asked] @ z_class.T, right, twins)
    metrics, errors = accuracies(rank, right, len(classes))
    return Answer(metrics, told(self._source, images, **self._told,
                                left_out=len(labels) - len(asked), standard_error=errors))


def class_embeddings(shared: Shared, texts: list[list[str]]) -> np.ndarray:
  """float32 [C, E], the normalised mean of the embeddings of each class's texts."""
  means = []
  group = max(1, CHUNK // max(map(len, texts)))  # Classes at a time: 1,000 of 80 are much text.
  for start in range(0, len(texts), group):
    own = texts[start:start + group]
    flat = shared.texts([text for one in own for text in one])
    edges = np.cumsum([len(one) for one in own])[:-1]
    means += [part.mean(0) for part in np.split(flat, edges)]
  z = np.stack(means)
  return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
