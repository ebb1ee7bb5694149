"""Leaves out the records of a source whose image occurred before, exactly or nearly."""

from typing import Any, Literal

import numpy as np

from clip_jax.cli.values import checked
from clip_jax.data.near_groups import near_groups
from clip_jax.data.record_hashes import record_hashes
from clip_jax.data.selection import record_number
from clip_jax.data.split import Distance
from clip_jax.errors import UserError
from clip_jax.interfaces import Source


@checked
class Deduplicate:
  """The records of a source without those whose image is a duplicate of an earlier record's.

  Of each group of duplicates, the first record is kept, with its own text only. Records with an
  unreadable image are kept. Hashing reads every image once, and the hashes are cached.

  Attributes:
    repeated: number of records dropped because an earlier one has the same or a similar image.
    held_out: number of records dropped because `against` has the same or a similar image.
    unreadable: number of records without a hash.
  """

  def __init__(
    self,
    source: Source,
    by: Literal["image hash", "image bytes"] = "image hash",
    distance: Distance = 4,
    against: Source | None = None,
  ):
    """Hashes the images and selects the records.

    Args:
      source: the records.
      by: "image hash" drops near-duplicates by their perceptual hash, see `image_hash`; "image
        bytes" drops identical files only.
      distance: number of different bits, of 192, up to which two perceptual hashes are near. Larger
        values find more of the copies, and drop more images that only look alike, as those of a
        series.
      against: also drop the records whose image occurs in this source, such as a test set.

    Raises:
      UserError: no record would be left.
    """
    self.source, self.by = source, by
    sources = [source] if against is None else [against, source]
    found = [record_hashes(one, by) for one in sources]
    known = np.concatenate([k for _, k in found])
    hashes = np.concatenate([h for h, _ in found])[known]
    groups = np.arange(len(known))
    with_hash = np.flatnonzero(known)
    groups[with_hash] = with_hash[near_groups(hashes, distance if by == "image hash" else 0)]
    # `against` comes first, so that the first of a group that it has a part in is one of its own.
    start = len(known) - len(source)
    groups = groups[start:]
    self.unreadable = int((~known[start:]).sum())
    self.held_out = int((groups < start).sum())
    self._indices = np.flatnonzero(groups == np.arange(start, len(known)))
    self.repeated = len(source) - self.held_out - len(self._indices)
    if not len(self._indices):
      raise UserError(
        f"Deduplicate would drop all {len(source):,} records: {self.held_out:,} are in `against`. "
        "Use another source, or a smaller distance."
      )

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.source[int(self._indices[record_number(i, len(self))])]

  def source_indices(self, at: np.ndarray) -> np.ndarray:
    """Maps record indices, int [n], to indices in `source`, int64 [n]."""
    return self._indices[np.asarray(at, np.int64)]

  def describe(self) -> str:
    """Returns one line for the log: the number of records kept and dropped."""
    line = (
      f"Deduplicate: keeps {len(self):,} of {len(self.source):,} records by {self.by}; dropped "
      f"{self.repeated:,} repeated"
    )
    line += f" and {self.held_out:,} held-out ones" if self.held_out else ""
    return line + (f"; {self.unreadable:,} cannot be read" if self.unreadable else "")
