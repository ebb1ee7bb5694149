"""Divides any source into a training, a validation and a test part."""

import math
from typing import Annotated, Any, Literal

import numpy as np

from clip_jax.cli.values import Fraction, Range, Seed, checked
from clip_jax.data.image_hash import BYTES
from clip_jax.data.near_groups import near_groups
from clip_jax.data.permutation import feistel_permute, splitmix64
from clip_jax.data.record_hashes import record_hashes
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

PARTS = ("train", "val", "test")
Part = Literal["train", "val", "test"]
Distance = Annotated[int, Range(0, BYTES - 1)]


@checked
class Split:
  """One of three parts of a source; records of one group are always in the same part.

  A held-out part is only worth as much as the training part does not contain it. Collections of
  images have many near-duplicates, so by default images with similar perceptual hashes are kept
  together, see `image_hash`. Hashing reads and decodes every image once; the hashes are cached.

  The parts are disjoint and cover the source. Their order of groups depends on the seed and on the
  contents of the groups, not on the order of the source.

  Attributes:
    groups: number of groups in the whole source.
    together: number of records, in the whole source, in groups of two or more.
    ungrouped: number of records, in the whole source, that cannot be read or have no value in the
      field; each is a group of its own.
  """

  def __init__(
    self,
    source: Source,
    part: Part = "train",
    fractions: tuple[Fraction, Fraction, Fraction] = (0.9, 0.05, 0.05),
    by: str | None = "image hash",
    seed: Seed = 0,
    distance: Distance = 6,
  ):
    """Assigns the groups to the parts.

    Args:
      source: the records.
      part: "train", "val" or "test".
      fractions: fractions of the records in the training, validation and test part, with a sum of
        1. The sizes are exact to within half a group.
      by: what a group is: "image hash" for near-duplicates, "image bytes" for identical files, the
        name of a field of the records, or None for single records, which reads no data.
      seed: seed of the assignment. Use the same for all three parts.
      distance: number of different bits, of 192, up to which "image hash" takes two images for
        near-duplicates.

    Raises:
      UserError: the fractions do not add up to 1, the part would be empty, or no record has the
        field.
    """
    if not math.isclose(sum(fractions), 1, abs_tol=1e-6):
      raise UserError(
        f"The fractions {tuple(fractions)} add up to {sum(fractions):g}, not 1; expected, for "
        "example, (0.9, 0.05, 0.05)."
      )
    self.source, self.part, self.by, self.seed = source, part, by, seed
    n, k = len(source), PARTS.index(part)
    limits = np.rint(np.cumsum([0, *fractions]) * n).astype(np.int64)
    self.ungrouped = self.together = 0
    self._indices: np.ndarray | None = None
    if by is None:
      self.groups = n
      self._start, self._size = int(limits[k]), int(limits[k + 1] - limits[k])
    else:
      self._indices = self._assign(limits, k, distance)
      self._size = len(self._indices)
    if not self._size:
      raise UserError(
        f"The {part} part of {n:,} records in {self.groups:,} groups is empty with fractions "
        f"{tuple(fractions)}. Raise its fraction, or use a larger source."
      )

  def _assign(self, limits, k, distance):
    """Returns the indices in the source of part k, ascending, int64."""
    hashes, known = record_hashes(self.source, self.by)
    groups = np.arange(len(hashes))
    with_hash = np.flatnonzero(known)
    distance = distance if self.by == "image hash" else 0
    groups[with_hash] = with_hash[near_groups(hashes[with_hash], distance)]
    self.ungrouped = len(groups) - len(with_hash)
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    self.groups, self.together = len(counts), int(counts[counts > 1].sum())
    # The order of the groups: the smallest key of their records, which comes from the content.
    keys = np.arange(len(hashes), dtype=np.uint64)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    keys[with_hash] = 0
    for word in words.T:
      keys = splitmix64(keys + np.uint64(0x9E3779B97F4A7C15) ^ word)
    keys = splitmix64(keys ^ np.uint64(splitmix64(self.seed + 1)))
    smallest = np.full(len(counts), np.iinfo(np.uint64).max)
    np.minimum.at(smallest, group, keys)
    order = np.argsort(smallest, kind="stable")
    before = np.empty(len(counts))
    before[order] = np.cumsum(counts[order]) - counts[order]
    middle = before + counts / 2
    return np.flatnonzero(((middle > limits[k]) & (middle <= limits[k + 1]))[group])

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self._size)
    return self.source[int(self.source_indices(np.array([i]))[0])]

  def source_indices(self, at: np.ndarray) -> np.ndarray:
    """Maps record indices, int [n], to indices in `source`, int64 [n]."""
    if self._indices is not None:
      return self._indices[np.asarray(at, np.int64)]
    i = np.array(at, np.uint64) + np.uint64(self._start)
    seed = splitmix64(self.seed ^ 0x5EED)  # Another permutation than that of a `Subset`.
    return feistel_permute(i, len(self.source), seed=seed).astype(np.int64)

  def describe(self) -> str:
    """Returns one line for the log: the size, and what was kept together."""
    n = len(self.source)
    line = f"Split: {self.part} part, {self._size:,} of {n:,} records ({self._size / n:.1%})"
    if self.by is None:
      return line + " at random"
    line += f"; {self.together:,} records share their {self.by} and stay together"
    return line + (f"; {self.ungrouped:,} have none" if self.ungrouped else "")
