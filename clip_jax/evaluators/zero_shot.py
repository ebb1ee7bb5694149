"""Zero-shot classification: chooses the class with prompts nearest to the image."""

import numpy as np

from clip_jax.cli.values import Records, checked
from clip_jax.evaluators.accuracy import accuracies, class_ranks
from clip_jax.evaluators.classes import Classes, ClassNames, Others
from clip_jax.evaluators.embedding_cache import CHUNK, EmbeddingCache, Resizing
from clip_jax.evaluators.results import (
  Context,
  Evaluator,
  Result,
  check_first_record,
  evaluated_records,
  source_detail,
)
from clip_jax.inference import templates as prompts
from clip_jax.interfaces import Source


@checked
class ZeroShot(Evaluator):
  """Accuracy of choosing the class with the highest score; ties count as errors.

  A class embedding is the normalised mean of the embeddings of all its prompts: each of its names
  in each template. Among classes with identical prompts (ImageNet has two classes named "missile"),
  the first is chosen, as by argmax in other evaluation code.
  """

  def __init__(
    self,
    source: Source,
    classes: ClassNames = None,
    label: str = "label",
    templates: str | tuple[str, ...] = "none",
    canonicalise: bool = False,
    limit: Records | None = None,
    resize: Resizing | None = None,
    others: Others = "error",
  ):
    """Creates the evaluator.

    Args:
      source: records {"image": ..., label: ...}.
      classes: candidate classes, as in `classes.Classes`: "imagenet", "imagenet_a", "imagenet_r" or
        "objectnet"; names in the order of the labels; a dict from label to one or several names,
        which restricts the candidates to these classes; or None for the source's own classes.
      label: name of the label field. A label may be a list of correct ones; records with an empty
        list are left out.
      templates: prompt templates, as in `templates.templates`: "none", "openai_7", "openai_80", a
        file, or the templates themselves.
      canonicalise: whether to apply `templates.canonical` to names and templates.
      limit: maximum number of records, spread evenly over the source; None for all.
      resize: how images are resized to the model's input size, a name in
        `embedding_cache.RESIZES`; None for the model's own preprocessing.
      others: what to do with records of classes that are not candidates: "error" or "leave_out".

    Raises:
      UserError: an empty source, a first record without image or label, fewer than two classes, a
        class without a name, a class without images if the source has a list of labels, or invalid
        templates, `resize` or `others`.
    """
    self._source, self._resize, self._limited = source, resize, limit is not None
    self._places = evaluated_records(source, limit)
    self._classes = Classes(source, classes, label, others)
    check_first_record(source, self._places, ("image", label))
    if limit is None:
      self._classes.check_labels_of(source)
    form = prompts.canonical if canonicalise else str
    self._templates = [form(template) for template in prompts.templates(templates)]
    self._told = {
      "templates": templates,
      "sentences": self._templates,
      "canonicalise": canonicalise,
      "classes": classes if isinstance(classes, str) else list(self._classes.called),
    }
    self._texts = [
      [sentence.replace("{}", form(name)) for name in own for sentence in self._templates]
      for own in self._classes.names
    ]

  def evaluate(self, context: Context) -> Result:
    """Computes the metrics of `accuracy.accuracies`.

    Raises:
      UserError: a record without image or label, a label that is not one of the classes, or a class
        without images.
    """
    cache, classes = context.embedder, self._classes
    images = cache.images(self._source, self._places, fields=(classes.label,), resize=self._resize)
    labels = [record[classes.label] for record in images.records]
    asked, right = classes.right(labels, self._places)
    # Skip the check for lists of labels (ReaL), where the raters may have rejected every image of a
    # class.
    if not self._limited and not any(isinstance(label, (list, tuple)) for label in labels):
      classes.check_seen(right)
    z_class = class_embeddings(cache, self._texts)
    first = {}
    twins = np.array([first.setdefault(tuple(texts), row) for row, texts in enumerate(self._texts)])
    rank = class_ranks(images.z[asked] @ z_class.T, right, twins)
    metrics, errors = accuracies(rank, right, len(classes))
    return Result(
      metrics,
      source_detail(
        self._source, images, **self._told, left_out=len(labels) - len(asked), standard_error=errors
      ),
    )


def class_embeddings(cache: EmbeddingCache, texts: list[list[str]]) -> np.ndarray:
  """Computes the normalised mean of the embeddings of each class's texts, float32 [C, E]."""
  means = []
  group = max(1, CHUNK // max(map(len, texts)))  # Classes per chunk, to limit memory.
  for start in range(0, len(texts), group):
    own = texts[start : start + group]
    flat = cache.texts([text for one in own for text in one])
    edges = np.cumsum([len(one) for one in own])[:-1]
    means += [part.mean(0) for part in np.split(flat, edges)]
  z = np.stack(means)
  return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
