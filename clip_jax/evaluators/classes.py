"""What the labels of records mean: which classes compete, what they are called, which are right."""

from collections import Counter
from collections.abc import Mapping
import csv
import difflib
import functools
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_ASSETS = Path(__file__).parent.parent / "data/assets/imagenet"
SETS = ("imagenet", "imagenet_a", "imagenet_r", "objectnet")
OTHERS = ("error", "leave_out")


class Classes:
  """The classes that compete, and the ones that a record's label says are right.

  Attributes:
    keys: of the classes, in the order of their rows.
    names: of each class, one or several.
    called: of each class, what to call it to a person.
  """

  def __init__(self, source: Source, classes: str | tuple | Mapping[str, Any] | None,
               label: str = "label", others: str = "error"):
    """Notes them.

    Args:
      source: the records; where it has `classes`, they name the labels.
      classes: a name in `SETS`; or names in the order of the labels 0, 1, ...; or label -> name or
        several names, where only these compete (ImageNet-A is 200 of the 1,000), the label being a
        number or a name in the source's `classes`; or None for the source's `classes`.
      label: the field that holds the class: its place in a tuple or its name, or its key in a
        dict; or a list of them, of which each is right, and where an empty one leaves the record
        out (ReaL).
      others: "error", or "leave_out" for records of other classes (ObjectNet: 200 of the 313).

    Raises:
      UserError: no such set, fewer than two classes, or a class without a name.
    """
    if others not in OTHERS:
      raise UserError(f"others={others!r} is none of {', '.join(OTHERS)}.")
    self.label, self._others = label, others
    self._numbered = tuple(getattr(source, "classes", ()))
    if classes is None:
      if not self._numbered:
        raise UserError(f"{type(source).__name__} does not say what its classes are called. Name "
                        "them: classes=(\"cat\", \"dog\", ...).")
      classes = self._numbered
    if isinstance(classes, str):
      classes = published(classes)
    # Keys as strings, because JSON knows no others and a config must survive it.
    keyed = {str(key): names for key, names in (
        classes.items() if isinstance(classes, Mapping) else enumerate(classes))}
    if len(keyed) < 2:
      raise UserError(
          f"classes={classes!r} has {len(keyed)} classes; expected at least two to choose from.")
    self.keys, self._row = tuple(keyed), {key: i for i, key in enumerate(keyed)}
    self.names = [(n,) if isinstance(n, str) else tuple(n) for n in keyed.values()]
    for key, own in zip(keyed, self.names):
      if not own or not all(isinstance(n, str) and n.strip() for n in own):
        raise UserError(
            f"Class {key!r} is called {keyed[key]!r}; expected a name, or several that are not "
            "empty.")
    self._named = {}
    if not isinstance(classes, Mapping):
      # A name that two classes share (ImageNet has such) does not say which is meant.
      count = Counter(name for own in self.names for name in own)
      self._named = {name: i for i, own in enumerate(self.names) for name in own
                     if count[name] == 1}
    self.called = tuple(own[0] for own in self.names) if self._named else self.keys

  def __len__(self) -> int:
    return len(self.keys)

  def rows(self, label: Any, place: int) -> tuple[int, ...]:
    """Rows of the classes that are right for a record; none if it is to be left out.

    Raises:
      UserError: the label is no class.
    """
    several = isinstance(label, (list, tuple)) or (isinstance(label, np.ndarray) and label.ndim)
    rows = (self._of(one, place) for one in (label if several else (label,)))
    return tuple(dict.fromkeys(row for row in rows if row is not None))

  def right(self, labels: list[Any],
            at: np.ndarray) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Which records are asked about, as places in `labels`, and the right rows of each of these.

    Raises:
      UserError: a label is no class, or there is nothing to ask about.
    """
    right = [self.rows(label, int(place)) for label, place in zip(labels, at)]
    asked = np.flatnonzero([len(one) > 0 for one in right])
    if not len(asked):
      raise UserError(
          f"None of the {len(labels):,} records is of one of the {len(self)} classes: "
          f"{', '.join(self.called[:10])}{', ...' if len(self) > 10 else ''}. The first has "
          f"{self.label} {labels[0]!r}.")
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
    close = difflib.get_close_matches(key, self.called, 1)
    raise UserError(
        f"Record {place} has {self.label} {label!r}, which is none of the {len(self.keys)} "
        f"classes: {', '.join(self.called[:10])}{', ...' if len(self.keys) > 10 else ''}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + " Add it to classes, or leave its records out: others=\"leave_out\".")

  def check_seen(self, right: list[tuple[int, ...]]) -> None:
    """Raises if there are classes that no record is of."""
    seen = np.bincount(np.concatenate(right).astype(np.int64), minlength=len(self))
    if not seen.all():
      empty = [name for name, n in zip(self.called, seen) if not n]
      raise UserError(
          f"{len(empty)} of {len(self)} classes have no images, the first: "
          f"{', '.join(map(repr, empty[:5]))}. The mean over classes needs some of each; leave "
          "them out of classes={label: name}, or add images.")


def published(name: str) -> dict[str, tuple[str, ...]]:
  """Label -> names of one of `SETS`: ImageNet's labels, or ObjectNet's folders.

  Source: `data/assets/imagenet/README.md`.

  Raises:
    UserError: there is no such set.
  """
  if name not in SETS:
    close = difflib.get_close_matches(name, SETS, 1)
    raise UserError(f"There are no classes {name!r}; there are {', '.join(SETS)}."
                    + (f" Did you mean {close[0]!r}?" if close else ""))
  if name == "objectnet":
    return {row["folder"]: (row["name"].lower(),) for row in _table("objectnet.tsv")}
  mark = {"imagenet_a": "A", "imagenet_r": "R"}.get(name, "")
  return {str(i): (row["name"],) for i, row in enumerate(_table("classes.tsv"))
          if mark in row["sets"]}


def in_imagenet(name: str) -> dict[str, tuple[str, ...]]:
  """Label -> labels in ImageNet of one of `SETS`."""
  if name == "objectnet":
    return {row["folder"]: tuple(row["imagenet"].split()) for row in _table("objectnet.tsv")}
  return {key: (key,) for key in published(name)}


@functools.cache
def _table(file):
  with open(_ASSETS / file, encoding="utf-8", newline="") as f:
    return tuple(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
