"""What becomes of everything that a reader finds, and the ledger that checks that nothing is lost.

Every reader of raw data counts each item that it finds (a row of a table, a member of a tar, a
file) and yields an outcome for it: `Taken`, `Dropped` or `NotAskedFor`. The three add up to what
was found, or `Ledger.check` fails.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from clip_jax.cli.formatting import printable

_MOST_KINDS = 100


class Dropped(ValueError):
  """Items that should have been a record but cannot be used; raised or yielded.

  Attributes:
    reason: why, in a few words; drops are counted by it.
    items: number of items.
    key: which record it is, if it has a name to be listed by.
  """

  def __init__(self, reason: str, items: int = 1, key: str | None = None):
    super().__init__(reason)
    self.reason, self.items, self.key = reason, items, key


@dataclasses.dataclass(frozen=True, slots=True)
class NotAskedFor:
  """Items that are no part of any record, such as a .npy or a hidden file.

  Attributes:
    kind: what they are, in a few words; they are counted by it.
    items: number of items.
  """

  kind: str
  items: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
  """A raw record.

  Attributes:
    record: see `clip_jax.data.ingest.clean`.
    items: number of items that it consists of.
    changes: what was changed in reading it, one or two words each.
  """

  record: dict[str, Any]
  items: int = 1
  changes: tuple[str, ...] = ()


Outcome = Taken | Dropped | NotAskedFor


class UncountedItems(Exception):
  """A reader lost track of items, which is a bug in this package."""


class Ledger:
  """Counts the items that one reader finds and what becomes of them.

  Attributes:
    unit: what an item is, in the plural: "rows", "tar members" ...
    found, read: number of items found, and of those that became part of a record.
    records: number of records read, including dropped ones; each `Dropped` counts as one.
    dropped: number of records dropped, by reason.
    dropped_items, not_asked_for: number of items, by reason and by kind.
  """

  def __init__(self, unit: str):
    self.unit = unit
    self.found = self.read = self.records = 0
    self.dropped, self.dropped_items, self.not_asked_for = Counter(), Counter(), Counter()

  def find(self, items: int = 1) -> None:
    """Notes that the reader has found items; call it before anything can go wrong with them."""
    self.found += items

  def take(self, outcome: Taken) -> None:
    """Notes a record that was written."""
    self.records += 1
    self.read += outcome.items

  def drop(self, reason: str, items: int) -> None:
    """Notes a record that was dropped."""
    self.records += 1
    self.dropped[reason] += 1
    self.dropped_items[reason] += items

  def leave(self, outcome: NotAskedFor) -> None:
    """Notes items that are no part of any record."""
    # Anyone may have chosen the endings of files.
    many = len(self.not_asked_for) >= _MOST_KINDS and outcome.kind not in self.not_asked_for
    self.not_asked_for["others" if many else outcome.kind] += outcome.items

  def summary(self) -> dict[str, Any]:
    """Returns the counts of items, for a manifest; see `unaccounted`."""
    return {
      "unit": self.unit,
      "found": self.found,
      "read": self.read,
      "dropped": dict(sorted(self.dropped_items.items())),
      "not_asked_for": dict(sorted(self.not_asked_for.items())),
    }

  def check(self, where: str) -> None:
    """Checks that every item that was found is accounted for.

    Raises:
      UncountedItems: read + dropped + not asked for is not found.
    """
    if missing := unaccounted(self.summary()):
      raise UncountedItems(
        f"Of the {self.found:,} {self.unit} of {where}, {missing:,} were neither read nor dropped "
        "nor left out. Please report this as a bug of clip_jax, with a small example."
      )


def kind_of_file(name: str) -> str:
  """Returns the kind to count a file by that is not asked for: its ending in lower case."""
  ending = os.path.splitext(name)[1].lower()
  return printable(ending[:20]) if ending else "no ending"


def total(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Adds up the summaries of several ledgers with the same unit."""
  by_reason = {name: Counter() for name in ("dropped", "not_asked_for")}
  for summary in summaries:
    for name, counts in by_reason.items():
      counts.update(summary[name])
  return {
    "unit": summaries[0]["unit"],
    **{name: sum(summary[name] for summary in summaries) for name in ("found", "read")},
    **{name: dict(sorted(counts.items())) for name, counts in by_reason.items()},
  }


def unaccounted(summary: Mapping[str, Any]) -> int:
  """Returns found - read - dropped - not asked for of a `Ledger.summary`; 0 if all is well."""
  left = summary["read"] + sum(summary["dropped"].values())
  return summary["found"] - left - sum(summary["not_asked_for"].values())
