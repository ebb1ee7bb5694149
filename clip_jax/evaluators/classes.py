"""Candidate classes, their names, and the mapping from a record's label to the correct classes."""

from collections import Counter
from collections.abc import Mapping
import csv
import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_ASSETS = Path(__file__).parent.parent / "data/assets/imagenet"
SETS = ("imagenet", "imagenet_a", "imagenet_r", "objectnet")
OTHERS = ("error", "leave_out")
Others = Literal["error", "leave_out"]
ClassNames = str | tuple[str | tuple[str, ...], ...] | Mapping[str, Any] | None


class Classes:
  """The candidate classes, and the mapping from a record's label to the correct ones.

  Attributes:
    keys: label of each class, in the order of the rows of scores.
    names: one or several names of each class.
    called: display name of each class.
  """

  def __init__(
    self,
    source: Source,
    classes: str | tuple | Mapping[str, Any] | None,
    label: str = "label",
    others: str = "error",
  ):
    """Creates the mapping from labels to rows.

    Args:
      source: the records; its `classes`, if it has any, name the labels.
      classes: a name in `SETS`; or the class names in the order of the labels 0, 1, ...; or a dict
        from label to one or several names, which restricts the candidates to these classes
        (ImageNet-A has 200 of the 1,000), where a label is a number or a name in the source's
        `classes`; or None for the source's `classes`.
      label: name of the label field. A label is an index into the classes or a class name, or a
        key if `classes` is a dict. It may also be a list of labels that are all correct; records
        with an empty list are left out (ReaL).
      others: what to do with records of classes that are not candidates: "error" or "leave_out"
        (ObjectNet: 200 of its 313 classes).

    Raises:
      UserError: an unknown set, fewer than two classes, or a class without a name.
    """
    if others not in OTHERS:
      raise UserError(f"Unknown others={others!r}; choose from {', '.join(OTHERS)}.")
    self.label, self._others = label, others
    self._numbered = tuple(getattr(source, "classes", ()))
    if classes is None:
      if not self._numbered:
        raise UserError(
          f'{type(source).__name__} does not name its classes. Set classes=("cat", "dog", ...).'
        )
      classes = self._numbered
    if isinstance(classes, str):
      classes = published(classes)
    # JSON only supports string keys, and configs are stored as JSON.
    keyed = {
      str(key): names
      for key, names in (classes.items() if isinstance(classes, Mapping) else enumerate(classes))
    }
    if len(keyed) < 2:
      raise UserError(f"classes={classes!r} has {len(keyed)} classes; expected at least two.")
    self.keys, self._row = tuple(keyed), {key: i for i, key in enumerate(keyed)}
    self.names = [(n,) if isinstance(n, str) else tuple(n) for n in keyed.values()]
    for key, own in zip(keyed, self.names):
      if not own or not all(isinstance(n, str) and n.strip() for n in own):
        raise UserError(
          f"Class {key!r} has the name {keyed[key]!r}; expected one or several non-empty strings."
        )
    self._named = {}
    if not isinstance(classes, Mapping):
      # A name that two classes share is ambiguous as a label; ImageNet has such names.
      count = Counter(name for own in self.names for name in own)
      self._named = {
        name: i for i, own in enumerate(self.names) for name in own if count[name] == 1
      }
    self.called = tuple(own[0] for own in self.names) if self._named else self.keys

  def __len__(self) -> int:
    return len(self.keys)

  def rows(self, label: Any, place: int) -> tuple[int, ...]:
    """Returns the rows of a record's correct classes; empty if the record is to be left out.

    Args:
      label: the record's label or list of labels.
      place: index of the record, for error messages.

    Raises:
      UserError: a label is not one of the classes.
    """
    several = isinstance(label, (list, tuple)) or (isinstance(label, np.ndarray) and label.ndim)
    rows = (self._of(one, place) for one in (label if several else (label,)))
    return tuple(dict.fromkeys(row for row in rows if row is not None))

  def right(self, labels: list[Any], at: np.ndarray) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Selects the records to evaluate and finds their correct classes.

    Args:
      labels: label of each record.
      at: int [n], index of each record in the source, for error messages.

    Returns:
      Positions in `labels` of the records that are not left out, and the rows of the correct
      classes of each of these.

    Raises:
      UserError: a label is not one of the classes, or every record is left out.
    """
    right = [self.rows(label, int(place)) for label, place in zip(labels, at)]
    asked = np.flatnonzero([len(one) > 0 for one in right])
    if not len(asked):
      raise UserError(
        f"None of the {len(labels):,} records belongs to one of the {len(self)} classes "
        f"{', '.join(self.called[:10])}{', ...' if len(self) > 10 else ''}. The first record has "
        f"{self.label} {labels[0]!r}. Check label and classes."
      )
    return asked, [right[k] for k in asked]

  def _of(self, label, place):
    written = isinstance(label, (str, bytes))
    key = label.decode() if isinstance(label, bytes) else str(label)
    if written and key in self._named:
      return self._named[key]
    if key in self._row:
      return self._row[key]
    if not written and 0 <= int(label) < len(self._numbered):
      key = self._numbered[int(label)]
      if key in self._row:
        return self._row[key]
    if self._others == "leave_out":
      return None
    raise UserError(
      f"Record {place} has {self.label} {label!r}, which is not one of the {len(self.keys)} "
      f"classes: {', '.join(self.called[:10])}{', ...' if len(self.keys) > 10 else ''}."
      f"{did_you_mean(key, self.called)}"
      ' Add it to classes, or set others="leave_out" to skip such records.'
    )

  def check_labels_of(self, source: Source) -> None:
    """Raises a UserError if the labels that a source lists show that a class has no records.

    Class folders list them, in `labels`; other sources would have to read every record.
    """
    labels = getattr(source, "labels", None)
    if labels is not None:
      self.check_seen(self.right(list(labels), np.arange(len(labels)))[1])

  def check_seen(self, right: list[tuple[int, ...]]) -> None:
    """Raises a UserError if any class has no records."""
    seen = np.bincount(np.concatenate(right).astype(np.int64), minlength=len(self))
    if not seen.all():
      empty = [name for name, n in zip(self.called, seen) if not n]
      raise UserError(
        f"{len(empty)} of {len(self)} classes have no images, starting with "
        f"{', '.join(map(repr, empty[:5]))}. Every class needs images; add some, or leave these "
        "classes out of classes={label: name}."
      )


def published(name: str) -> dict[str, tuple[str, ...]]:
  """Returns the class names of one of `SETS` by label: ImageNet's labels or ObjectNet's folders.

  Source: `data/assets/imagenet/README.md`.

  Raises:
    UserError: unknown set.
  """
  if name not in SETS:
    raise UserError(
      f"Unknown classes {name!r}; choose from {', '.join(SETS)}.{did_you_mean(name, SETS)}"
    )
  if name == "objectnet":
    return {row["folder"]: (row["name"].lower(),) for row in _table("objectnet.tsv")}
  mark = {"imagenet_a": "A", "imagenet_r": "R"}.get(name, "")
  return {
    str(i): (row["name"],) for i, row in enumerate(_table("classes.tsv")) if mark in row["sets"]
  }


def in_imagenet(name: str) -> dict[str, tuple[str, ...]]:
  """Maps the labels of one of `SETS` to ImageNet's labels."""
  if name == "objectnet":
    return {row["folder"]: tuple(row["imagenet"].split()) for row in _table("objectnet.tsv")}
  return {key: (key,) for key in published(name)}


@functools.cache
def _table(file):
  with open(_ASSETS / file, encoding="utf-8", newline="") as f:
    return tuple(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
