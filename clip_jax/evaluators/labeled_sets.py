"""Labeled sets and the features of their images, for training and testing probes."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from clip_jax.cli.values import Records, checked
from clip_jax.errors import UserError
from clip_jax.evaluators.accuracy import accuracies, class_ranks
from clip_jax.evaluators.classes import SETS, Classes, ClassNames, Others, in_imagenet
from clip_jax.evaluators.embedding_cache import EmbeddingCache, ImageEmbeddings, Resizing
from clip_jax.evaluators.results import check_first_record, evaluated_records
from clip_jax.interfaces import Source

Features = Literal["tower", "embedding"]


@checked
@dataclasses.dataclass(frozen=True)
class LabeledSet:
  """A source of labeled images.

  Attributes:
    source: records {"image": ..., label: ...}.
    label: name of the label field; in a test set a label may be a list of correct ones.
    classes: in a training set, the classes as in `classes.Classes`. In a test set, the candidate
      classes: a name in `classes.SETS`, or a dict from label to one or several classes of the
      training set; None for all classes of the training set.
    limit: maximum number of records, spread evenly over the source; None for all.
    resize: how images are resized to the model's input size, a name in
      `embedding_cache.RESIZES`; None for the model's own preprocessing.
    others: what to do with records of classes that are not candidates: "error" or "leave_out".
    places: indices of the records used.
  """

  source: Source
  label: str = "label"
  classes: ClassNames = None
  limit: Records | None = None
  resize: Resizing | None = None
  others: Others = "error"
  places: np.ndarray = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, "places", evaluated_records(self.source, self.limit))
    check_first_record(self.source, self.places, ("image", self.label))


@dataclasses.dataclass(frozen=True)
class FeatureSet:
  """A training set with its features.

  Attributes:
    classes: the classes of the labels.
    x: features of the readable images, float32 [n, D].
    y: row of each image's class, int64 [n].
    images: the images of all records, including the unreadable ones.
  """

  classes: Classes
  x: np.ndarray
  y: np.ndarray
  images: ImageEmbeddings


def training_features(cache: EmbeddingCache, labelled: LabeledSet, features: str) -> FeatureSet:
  """Computes the features and classes of the readable images of a training set.

  Raises:
    UserError: a class without images, a label that is not one of the classes, a record with several
      labels, or features that are not finite.
  """
  classes = Classes(labelled.source, labelled.classes, labelled.label, labelled.others)
  images = _images(cache, labelled)
  asked, right = classes.right([r[labelled.label] for r in images.records], labelled.places)
  several = next((k for k, rows in zip(asked, right) if len(rows) > 1), None)
  if several is not None:
    raise UserError(
      f"Record {labelled.places[several]} has several labels; training a probe needs "
      "exactly one per record."
    )
  x, y = _vectors(images, features)[asked], np.concatenate(right).astype(np.int64)
  good = np.isfinite(x).all(1)  # The features of unreadable images are NaN.
  if len(good) - good.sum() > len(images.unreadable):
    raise UserError(
      "The model's features are not finite because its training has diverged. "
      "Evaluate another model."
    )
  x, y = x[good], y[good]
  classes.check_seen([(int(row),) for row in y])
  return FeatureSet(classes, x, y, images)


def test_accuracies(
  cache: EmbeddingCache, labelled: LabeledSet, features: str, classes: Classes, logits: Any
) -> tuple[dict[str, float], dict[str, float], ImageEmbeddings]:
  """Tests a classifier on a test set.

  Args:
    cache: the model with its embedding cache.
    labelled: the test set.
    features: input of the classifier, a name of `Features`.
    classes: the classes that the classifier was trained on.
    logits: the classifier, float32 [n, D] -> [n, C].

  Returns:
    The metrics and standard errors of `accuracy.accuracies`, and the images.

  Raises:
    UserError: a label is not one of the test set's classes, or maps to a class that the classifier
      was not trained on.
  """
  stands_for, own = None, classes
  if labelled.classes is not None:
    stands_for = competing(labelled.classes, classes)
    own = Classes(
      labelled.source, {key: key for key in stands_for}, labelled.label, labelled.others
    )
  images = _images(cache, labelled)
  asked, right = own.right([r[labelled.label] for r in images.records], labelled.places)
  scores = logits(_vectors(images, features)[asked])  # [n, C]
  competitors: Sequence[int] = range(len(classes))
  if stands_for is not None:
    competitors = sorted({row for rows in stands_for.values() for row in rows})
    place = {row: i for i, row in enumerate(competitors)}
    meant = [tuple(place[row] for row in rows) for rows in stands_for.values()]
    right = [tuple(dict.fromkeys(i for key in keys for i in meant[key])) for keys in right]
    scores = scores[:, competitors]
  metrics, errors = accuracies(class_ranks(scores, right), right, len(competitors))
  return metrics, errors, images


def competing(
  given: str | tuple | Mapping[str, Any], classes: Classes
) -> dict[str, tuple[int, ...]]:
  """Maps each label of a test set to rows of the training set's classes.

  Args:
    given: `classes` of the test set's `LabeledSet`.
    classes: the classes of the training set.

  Raises:
    UserError: an unknown set, or a label that maps to a class the training set does not have.
  """
  if isinstance(given, str):
    if given not in SETS:
      raise UserError(
        f"Unknown classes={given!r} of a test set; choose from {', '.join(SETS)}, or "
        "pass a dict from label to class of the training set."
      )
    given = in_imagenet(given)
  if not isinstance(given, Mapping):
    given = {name: name for name in given}
  rows = {name: row for row, name in enumerate(classes.called)} | {
    key: row for row, key in enumerate(classes.keys)
  }
  made = {}
  for key, value in given.items():
    values = value if isinstance(value, (tuple, list)) else (value,)
    unknown = [one for one in values if str(one) not in rows]
    if unknown:
      raise UserError(
        f"Label {key!r} of a test set maps to {unknown[0]!r}, which is not one of the "
        f"{len(classes)} training classes: {', '.join(classes.called[:10])}"
        f"{', ...' if len(classes) > 10 else ''}."
      )
    made[str(key)] = tuple(rows[str(one)] for one in values)
  return made


def _images(cache: EmbeddingCache, labelled: LabeledSet) -> ImageEmbeddings:
  return cache.images(
    labelled.source, labelled.places, fields=(labelled.label,), resize=labelled.resize
  )


def _vectors(images: ImageEmbeddings, features: str) -> np.ndarray:
  return images.features if features == "tower" else images.z
