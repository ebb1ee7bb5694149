r"""Selects the records of a source with the highest scores, from a model or from a record field.

  python -m clip_jax.score --model=MODEL --source=S --out=S.npz
  ScoreFilter(source, "S.npz", keep="top 40%")

Source: Li, Xie, Cubuk 2024, section 4: training on the top 40% of 3.4 billion pairs by image-text
similarity gives a better model than training on all of them.

Example with a small model that scores the noisy data it was trained on: configs/quickstart.py at
commit 47e2110 (600 steps of 128 examples, a few minutes on a CPU), Open Clip Art with 1,869 of
4,562 captions swapped. keep="top 60%" keeps 77.0% of the clean records and drops 64.5% of the
swapped ones, which raises the clean fraction from 59.0% to 75.7%. In the top 20%, 89.1% are clean.

  python -m clip_jax.train --config=configs/quickstart.py --workdir=DIR \
      --config.data.source.swapped=0.4
  python -m clip_jax.score --model=DIR --out=scores.npz
"""

from contextlib import closing
import hashlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from clip_jax.cli.cache import caches
from clip_jax.cli.values import FilePath, checked
from clip_jax.data.read_ahead import map_ahead
from clip_jax.data.score_file import fingerprint, read_scores, write_scores
from clip_jax.data.selection import base_indices_of, record_number, selection_chain
from clip_jax.data.subset import count
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_BLOCK = 512  # Records per entry of the table that locates the i-th kept record.
_CHUNK = 2**20  # Scores processed at a time; a multiple of 8.
_MIN_CACHED = 10_000  # Cache scores read from the records of a source with at least this many.


@checked
class ScoreFilter:
  """The records of `source` with the highest scores, in the order of the source.

  Uses one bit of memory per record of `source` and memory-maps the score file; a billion records
  take 140 MB.

  Attributes:
    threshold: lowest score kept; with `above`, the value of `above`.
    kept: number of records kept, the same as `len`.
    tied: number of records dropped although their score equals the threshold; with `keep`, ties
      are broken in favour of earlier records.
    unscored: number of records without a score (NaN), which are never kept.
  """

  def __init__(
    self, source: Source, scores: FilePath, keep: str | None = None, above: float | None = None
  ):
    """Reads the scores and selects the records.

    Args:
      source: the scored records, or a selection of them, such as a `Subset`.
      scores: path of a file written by `python -m clip_jax.score`, or the name of a numeric field
        of the records, such as "similarity".
      keep: how many records to keep: "top 40%" of `source`, or "top 10M".
      above: keep the records with a score greater than this, instead of a fixed number.

    Raises:
      UserError: the scores belong to another source, no record would be kept, or not exactly one
        of `keep` and `above` is given.
    """
    if (keep is None) == (above is None):
      raise UserError(
        f"ScoreFilter has keep={keep!r} and above={above!r}; give exactly one, for "
        'example keep="top 40%" or above=0.3.'
      )
    self.source, self.scores, self.keep, self.above = source, scores, keep, above
    values, self._scored_source = _read_scores(source, os.fspath(scores))
    wanted = None if keep is None else _parse_keep(keep, len(source))
    self._select(values, wanted)

  def _select(self, values, wanted):
    """Sets one bit per kept record and builds the table that locates them."""
    n = len(self.source)

    def pieces():
      for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        if self._scored_source is self.source:
          yield start, _sortable(values[start:stop])
        else:
          yield (
            start,
            _sortable(
              values[base_indices_of(self.source, np.arange(start, stop), self._scored_source)]
            ),
          )

    if wanted is None:
      bound, spare = int(_sortable(np.array([self.above], np.float32))[0]), 0
    else:
      bound, spare = _selection_bound(pieces, wanted)
    bits = np.zeros(-(-n // _BLOCK) * _BLOCK // 8, np.uint8)
    self.tied = self.unscored = 0
    self._highest = 0
    for start, order in pieces():
      keep = order > bound
      ties = np.flatnonzero(order == bound)
      keep[ties[:spare]] = True
      if wanted is not None:
        self.tied += max(0, len(ties) - spare)
      spare = max(0, spare - len(ties))
      packed = np.packbits(keep)
      bits[start // 8 : start // 8 + len(packed)] = packed
      self.unscored += int((order == 0).sum())
      self._highest = max(self._highest, int(order.max()))
    blocks = np.bitwise_count(bits).reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.int64)
    self._bits = bits.reshape(-1, _BLOCK // 8)
    self._starts = np.concatenate([[0], np.cumsum(blocks)])  # Kept records before each block.
    self.kept = int(self._starts[-1])
    self.threshold = float(self.above if wanted is None else _score_of(bound))
    if not self.kept:
      raise UserError(
        f"ScoreFilter would keep none of {n:,} records: "
        + (
          f"none of them has a score ({self.unscored:,} are NaN)."
          if self.unscored == n
          else f"the highest score is {_score_of(self._highest):.4g}, but above={self.above}. "
          "Lower it."
        )
      )
    # Also count the scored records outside this selection that pass the threshold.
    self._passing = self.kept + self.tied
    if self._scored_source is not self.source:
      least = bound if wanted is not None else bound + 1
      self._passing = sum(
        int((_sortable(values[i : i + _CHUNK]) >= least).sum())
        for i in range(0, len(values), _CHUNK)
      )

  def __len__(self) -> int:
    return self.kept

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.kept)
    return self.source[int(self.source_indices(np.array([i]))[0])]

  def indices(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns the source indices of records `start` up to `stop`, int64 [stop - start]."""
    start, stop, _ = slice(start, stop).indices(self.kept)
    return self.source_indices(np.arange(start, max(start, stop)))

  def source_indices(self, at: np.ndarray) -> np.ndarray:
    """Maps record indices, int [n], to indices in `source`, int64 [n]."""
    at = np.asarray(at, np.int64)
    pieces = [self._source_indices(at[i : i + 2**16]) for i in range(0, len(at), 2**16)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

  def _source_indices(self, at):
    block = np.searchsorted(self._starts, at, side="right") - 1
    blocks, which = np.unique(block, return_inverse=True)
    on = np.flatnonzero(np.unpackbits(self._bits[blocks]))  # Unpack only these blocks.
    counts = self._starts[blocks + 1] - self._starts[blocks]
    chosen = on[(np.cumsum(counts) - counts)[which] + at - self._starts[block]]
    return blocks[chosen // _BLOCK] * _BLOCK + chosen % _BLOCK

  def describe(self) -> str:
    """Returns one line for the log: number kept, threshold, ties and missing scores."""
    n = len(self.source)
    criterion = self.keep if self.keep is not None else f"above {self.above:g}"
    line = (
      f"ScoreFilter: {criterion} by {os.path.basename(self.scores)} keeps {self.kept:,} of {n:,} "
      f"({self.kept / n:.1%}), threshold {self.threshold:.4g}"
    )
    if self._scored_source is not self.source:
      line += (
        f"; {self._passing:,} of all {len(self._scored_source):,} scored records are at or above it"
        if self.keep is not None
        else f"; {self._passing:,} of all {len(self._scored_source):,} scored records are above it"
      )
    if self.tied:
      line += f"; dropped {self.tied:,} tied at the threshold"
    if self.unscored:
      line += f"; {self.unscored:,} have no score"
    return line


def _parse_keep(keep, total):
  """Parses `keep` to a number of records."""
  written = re.fullmatch(r"top\s+(\S+)", str(keep).strip())
  share = re.fullmatch(r"(\d+(?:\.\d+)?)%", written[1]) if written else None
  try:
    wanted = round(float(share[1]) * total / 100) if share else count(written[1], total)
  except (TypeError, UserError):
    raise UserError(f'keep={keep!r} is not "top 40%" or "top 10M".') from None
  if not 0 < wanted <= total:
    raise UserError(
      f"keep={keep!r} is {wanted:,} records, but must be between 1 and {total:,}, "
      "the size of the source."
    )
  return wanted


def _sortable(scores):
  """Maps float32 [n] to uint32 [n] with the same order, which can be counted; NaN becomes 0."""
  scores = np.asarray(scores, np.float32)
  bits = (scores + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0.
  order = np.where(bits >> 31, ~bits, bits | 0x80000000)
  return np.where(np.isnan(scores), np.uint32(0), order)


def _score_of(order):
  """Inverse of `_sortable` for one number."""
  bits = order & 0x7FFFFFFF if order >> 31 else ~order & 0xFFFFFFFF
  return float(np.uint32(bits).view(np.float32))


def _selection_bound(pieces, wanted):
  """Returns (bound, spare): the top `wanted` are those above `bound` and the first `spare` at it.

  An exact radix selection: counts the upper 16 bits of all numbers, then the lower 16 bits of those
  that share the bound's upper bits. It needs one table of counts and no sorting.
  """
  bound = 0
  for shift in (16, 0):
    counts = np.zeros(2**16, np.int64)
    for _, order in pieces():
      order = order[order > 0]
      if not shift:
        order = order[order >> 16 == bound >> 16]
      counts += np.bincount(order >> shift & 0xFFFF, minlength=2**16)
    wanted = min(wanted, int(counts.sum()))  # Some records may be unscored.
    if not wanted:
      break
    above = np.cumsum(counts[::-1])[::-1] - counts  # Numbers in higher bins.
    half = int(np.flatnonzero(above + counts >= wanted)[-1])
    wanted -= int(above[half])
    bound |= half << shift
  return bound, wanted


def _read_scores(source, scores):
  """Returns (scores, float32 [n]; the level of the source that they belong to)."""
  path = pathlib.Path(scores)
  if not path.exists():
    first = source[0]
    if scores in first:
      return _read_field(source, scores), source
    if not path.suffix and len(path.parts) == 1:
      numbers = [name for name, value in first.items() if _is_number(value)]
      raise UserError(
        f"scores={scores!r} is neither a file nor a field of the records of "
        f"{type(source).__name__}; numeric fields: {', '.join(map(repr, numbers)) or 'none'}."
      )
  values, header = read_scores(path)
  chain = list(selection_chain(source))
  for level in chain:
    if len(level) == header["records"] and fingerprint(level) == header["source_fingerprint"]:
      return values, level
  has = " over ".join(f"{type(x).__name__} of {len(x):,}" for x in chain)
  raise UserError(
    f"{path} holds the scores of another source: {header['source']} of {header['records']:,} "
    f"records, fingerprint {header['source_fingerprint']}. This source is {has}, "
    f"fingerprint {fingerprint(chain[-1])}. Score this source with python -m clip_jax.score; "
    "changed captions also need new scores."
  )


def _read_field(source, name):
  """Reads field `name` of every record, float32 [n]; caches the result in a file."""

  def number(i):
    try:
      value = source[i].get(name)
    except UserError:
      raise
    except Exception:  # An unreadable record has no score.
      return np.nan
    if value is None:
      return np.nan
    if not _is_number(value):
      raise UserError(f"scores={name!r}: the value in record {i}, {value!r}, is not a number.")
    return value

  def read():
    with closing(map_ahead(number, range(len(source)), threads=16, ahead=1024)) as found:
      return np.fromiter(found, np.float32, len(source))

  if len(source) < _MIN_CACHED:
    return read()
  probes = [number(len(source) * k // 64) for k in range(64)]
  key = hashlib.sha256(f"{fingerprint(source)} {name} {probes}".encode()).hexdigest()[:16]
  path = caches() / f"{name}-{key}.npz"
  if path.exists():
    return read_scores(path)[0]
  values = read()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, values, source, field=name)
  except OSError:  # The cache folder is not writable: read the scores again next time.
    pass
  return values


def _is_number(value):
  return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
