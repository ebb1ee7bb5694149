"""A labelled set and the features of its images: what probes are made from and tested on."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluators.accuracy import accuracies, class_ranks
from clip_jax.evaluators.answers import places
from clip_jax.evaluators.classes import SETS, Classes, in_imagenet
from clip_jax.evaluators.shared import Images, Shared, check_resize
from clip_jax.interfaces import Source

FEATURES = ("tower", "embedding")


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A source of images with labels.

  Attributes:
    source: records {"image": ..., label: ...}.
    label: the field that holds the class; in a test set it may be a list of right ones.
    classes: as `classes.Classes` has it. In a test set that others train for, what competes: a name
      in `classes.SETS`, or label -> class of the training set, or several; None for all of them.
    limit: only this many records, spread evenly over the source; None for all.
    resize: how images are made the model's size, a name in `shared.RESIZES`.
    others: "error", or "leave_out" for records of classes that do not compete.
  """
  source: Source
  label: str = "label"
  classes: str | tuple[str, ...] | Mapping[str, Any] | None = None
  limit: int | None = None
  resize: str | None = None
  others: str = "error"
  places: np.ndarray = dataclasses.field(init=False)  # Of the records, in the source.

  def __post_init__(self) -> None:
    check_resize(self.resize)
    object.__setattr__(self, "places", places(self.source, self.limit))


@dataclasses.dataclass(frozen=True)
class Known:
  """A training set with its features.

  Attributes:
    classes: of the labels.
    x: float32 [n, D].
    y: int64 [n], rows of the classes.
    images: of all records, the unreadable ones too.
  """
  classes: Classes
  x: np.ndarray
  y: np.ndarray
  images: Images


def check_features(features: str) -> None:
  """Raises unless it is one of `FEATURES`."""
  if features not in FEATURES:
    raise UserError(f"features={features!r} is none of {', '.join(FEATURES)}.")


def training(shared: Shared, labelled: Labelled, features: str) -> Known:
  """The readable images of a training set and their classes.

  Raises:
    UserError: a class without images, a label that is no class, or a record with several labels.
  """
  classes = Classes(labelled.source, labelled.classes, labelled.label, labelled.others)
  images = _images(shared, labelled)
  asked, right = classes.right([r[labelled.label] for r in images.records], labelled.places)
  several = next((k for k, rows in zip(asked, right) if len(rows) > 1), None)
  if several is not None:
    raise UserError(f"Record {labelled.places[several]} has several labels, and to train a probe "
                    "there must be one.")
  x, y = _vectors(images, features)[asked], np.concatenate(right).astype(np.int64)
  good = np.isfinite(x).all(1)  # Unreadable ones teach nothing.
  if len(good) - good.sum() > len(images.unreadable):
    raise UserError("The model's features are not numbers: its training has diverged.")
  x, y = x[good], y[good]
  classes.check_seen([(int(row),) for row in y])
  return Known(classes, x, y, images)


def tested(shared: Shared, labelled: Labelled, features: str, classes: Classes,
           logits: Any) -> tuple[dict[str, float], dict[str, float], Images]:
  """How well a classifier does on a test set.

  Args:
    shared: the model.
    labelled: the test set.
    features: what the classifier takes, of `FEATURES`.
    classes: that it knows.
    logits: float32 [n, D] -> [n, C].

  Returns:
    As `accuracy.accuracies`, and the images.

  Raises:
    UserError: a label is no class of the test set, or stands for none that the classifier knows.
  """
  stands_for, own = None, classes
  if labelled.classes is not None:
    stands_for = competing(labelled.classes, classes)
    own = Classes(labelled.source, {key: key for key in stands_for}, labelled.label,
                  labelled.others)
  images = _images(shared, labelled)
  asked, right = own.right([r[labelled.label] for r in images.records], labelled.places)
  scores = logits(_vectors(images, features)[asked])                          # [n, C]
  competitors: Sequence[int] = range(len(classes))
  if stands_for is not None:
    competitors = sorted({row for rows in stands_for.values() for row in rows})
    place = {row: i for i, row in enumerate(competitors)}
    meant = [tuple(place[row] for row in rows) for rows in stands_for.values()]
    right = [tuple(dict.fromkeys(i for key in keys for i in meant[key])) for keys in right]
    scores = scores[:, competitors]
  metrics, errors = accuracies(class_ranks(scores, right), right, len(competitors))
  return metrics, errors, images


def competing(given: str | tuple[str, ...] | Mapping[str, Any],
              classes: Classes) -> dict[str, tuple[int, ...]]:
  """Of each label of a test set, the rows of the training set's classes that it stands for.

  Raises:
    UserError: it stands for a class that the training set does not have.
  """
  if isinstance(given, str):
    if given not in SETS:
      raise UserError(f"classes={given!r} of a test set is none of {', '.join(SETS)}; or give "
                      "label -> class of the training set.")
    given = in_imagenet(given)
  if not isinstance(given, Mapping):
    given = {name: name for name in given}
  rows = {name: row for row, name in enumerate(classes.called)} | {
      key: row for row, key in enumerate(classes.keys)}
  made = {}
  for key, value in given.items():
    values = value if isinstance(value, (tuple, list)) else (value,)
    unknown = [one for one in values if str(one) not in rows]
    if unknown:
      raise UserError(
          f"The label {key!r} of a test set stands for {unknown[0]!r}, which is none of the "
          f"{len(classes)} classes trained on: {', '.join(classes.called[:10])}"
          f"{', ...' if len(classes) > 10 else ''}.")
    made[str(key)] = tuple(rows[str(one)] for one in values)
  return made


def _images(shared: Shared, labelled: Labelled) -> Images:
  return shared.images(labelled.source, labelled.places, fields=(labelled.label,),
                       resize=labelled.resize)


def _vectors(images: Images, features: str) -> np.ndarray:
  return images.features if features == "tower" else images.z
