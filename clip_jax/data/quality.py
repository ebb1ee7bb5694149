r"""The best records of a source, by a score of each: a model's, or one that the records hold.

  python -m clip_jax.score --from=MODEL --source=S --out=S.npz
  Quality(source, "S.npz", keep="top 40%")

Source: Li, Xie, Cubuk 2024, section 4: the top 40% of 3.4 billion pairs by image-text similarity
train a better model than all of them.

What to expect of a small model that was trained on the noise it is to find: configs/quickstart.py
at commit 47e2110 (600 steps of 128, some minutes on a CPU), Open Clip Art with 1,869 of 4,562
captions swapped. Of what keep="top 60%" keeps, 75.7% is clean, where 59.0% of all is; 77.0% of the
clean records are kept, and 64.5% of the swapped ones dropped. Of the top 20%, 89.1% is clean.

  python -m clip_jax.train --config=configs/quickstart.py --workdir=DIR \
      --config.data.source.swapped=0.4
  python -m clip_jax.score --from=DIR --out=scores.npz
"""

import concurrent.futures
import hashlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from clip_jax.data.scores import fingerprint, read_scores, write_scores
from clip_jax.data.selection import levels, places_in, record_number
from clip_jax.data.subset import count
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

_BLOCK = 512     # Records to an entry of the table that finds the i-th one kept.
_PIECE = 2**20   # Scores looked at, at a time; a multiple of 8.
_REMEMBERED = 10_000  # Records from which on the scores read from them are kept in a file.


class Quality:
  """The records of `source` with the highest scores, in the order of the source.

  Memory: one bit a record of `source`, and scores are mapped from their file, so a billion records
  take 140 MB.

  Attributes:
    threshold: the lowest score kept; with `above`, that bound itself.
    kept: number of records kept, also `len`.
    tied: records left out whose score is the threshold: with `keep`, the later ones give way.
    unscored: records without a score (NaN); never kept.
  """

  def __init__(self, source: Source, scores: str, keep: str | None = None,
               above: float | None = None):
    """Chooses.

    Args:
      source: the records; or a selection of those that the scores are of, such as a `Subset`.
      scores: path of a file that `python -m clip_jax.score` wrote; or the name of a number in each
        record, such as "similarity".
      keep: how many, "top 40%" of the source or "top 10M".
      above: or the score that a record must be above.

    Raises:
      UserError: the scores are of another source or another number of records, nothing would be
        kept, or not exactly one of `keep` and `above` is given.
    """
    if (keep is None) == (above is None):
      raise UserError(f"Quality has keep={keep!r} and above={above!r}; give exactly one, as "
                      'keep="top 40%" or above=0.3.')
    self.source, self.scores, self.keep, self.above = source, scores, keep, above
    values, self._level = _scores(source, os.fspath(scores))
    wanted = None if keep is None else _wanted(keep, len(source))
    self._choose(values, wanted)

  def _choose(self, values, wanted):
    """Sets one bit for each record that is kept, and the table that finds them."""
    n = len(self.source)

    def pieces():
      for start in range(0, n, _PIECE):
        stop = min(start + _PIECE, n)
        if self._level is self.source:
          yield start, _ordered(values[start:stop])
        else:
          yield start, _ordered(values[places_in(self.source, np.arange(start, stop), self._level)])

    if wanted is None:
      bound, spare = int(_ordered(np.array([self.above], np.float32))[0]), 0
    else:
      bound, spare = _bound(pieces, wanted)
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
      bits[start // 8:start // 8 + len(packed)] = packed
      self.unscored += int((order == 0).sum())
      self._highest = max(self._highest, int(order.max()))
    blocks = np.bitwise_count(bits).reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.int64)
    self._bits = bits.reshape(-1, _BLOCK // 8)
    self._starts = np.concatenate([[0], np.cumsum(blocks)])  # Kept records before each block.
    self.kept = int(self._starts[-1])
    self.threshold = float(self.above if wanted is None else _value(bound))
    if not self.kept:
      raise UserError(
          f"Quality would keep none of {n:,} records: "
          + (f"none of them has a score ({self.unscored:,} are NaN)." if self.unscored == n else
             f"the highest score is {_value(self._highest):.4g}, and above is {self.above}. "
             "Set a lower one."))
    # How many of all that were scored pass the same bound, this source's or not.
    self._passing = self.kept + self.tied
    if self._level is not self.source:
      least = bound if wanted is not None else bound + 1
      self._passing = sum(int((_ordered(values[i:i + _PIECE]) >= least).sum())
                          for i in range(0, len(values), _PIECE))

  def __len__(self) -> int:
    return self.kept

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, self.kept)
    return self.source[int(self.places(np.array([i]))[0])]

  def indices(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """int64 [stop - start], places in the source of the records from `start` up to `stop`."""
    start, stop, _ = slice(start, stop).indices(self.kept)
    return self.places(np.arange(start, max(start, stop)))

  def places(self, at: np.ndarray) -> np.ndarray:
    """int64 [n], places in the source of the records number `at`, int [n]."""
    at = np.asarray(at, np.int64)
    pieces = [self._places(at[i:i + 2**16]) for i in range(0, len(at), 2**16)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

  def _places(self, at):
    block = np.searchsorted(self._starts, at, side="right") - 1
    blocks, which = np.unique(block, return_inverse=True)
    on = np.flatnonzero(np.unpackbits(self._bits[blocks]))  # Of these blocks alone.
    counts = self._starts[blocks + 1] - self._starts[blocks]
    chosen = on[(np.cumsum(counts) - counts)[which] + at - self._starts[block]]
    return blocks[chosen // _BLOCK] * _BLOCK + chosen % _BLOCK

  def describe(self) -> str:
    """One line for the log: the threshold, the count, and what overlaps."""
    n = len(self.source)
    asked = self.keep if self.keep is not None else f"above {self.above:g}"
    line = (f"Quality: {asked} by {os.path.basename(self.scores)} keeps {self.kept:,} of {n:,} "
            f"({self.kept / n:.1%}), threshold {self.threshold:.4g}")
    if self._level is not self.source:
      line += (f"; {self._passing:,} of all {len(self._level):,} scored are at or above it"
               if self.keep is not None else
               f"; {self._passing:,} of all {len(self._level):,} scored are above it")
    if self.tied:
      line += f"; {self.tied:,} more have exactly the threshold's score"
    if self.unscored:
      line += f"; {self.unscored:,} have no score"
    return line


def _wanted(keep, total):
  """The number of records that `keep` means."""
  written = re.fullmatch(r"top\s+(\S+)", str(keep).strip())
  share = re.fullmatch(r"(\d+(?:\.\d+)?)%", written[1]) if written else None
  try:
    wanted = round(float(share[1]) * total / 100) if share else count(written[1], total)
  except (TypeError, UserError):
    raise UserError(f'keep={keep!r} is not "top 40%" or "top 10M".') from None
  if not 0 < wanted <= total:
    raise UserError(f"keep={keep!r} is {wanted:,} records, not between 1 and the {total:,} that "
                    "the source has. Set a number within.")
  return wanted


def _ordered(scores):
  """uint32 [n] in the order of float32 [n]: integers can be counted. NaN becomes 0, the least."""
  scores = np.asarray(scores, np.float32)
  bits = (scores + np.float32(0)).view(np.uint32)  # + 0 makes one zero of the two.
  order = np.where(bits >> 31, ~bits, bits | 0x80000000)
  return np.where(np.isnan(scores), np.uint32(0), order)


def _value(order):
  """The score of a place in that order."""
  bits = order & 0x7FFFFFFF if order >> 31 else ~order & 0xFFFFFFFF
  return float(np.uint32(bits).view(np.float32))


def _bound(pieces, wanted):
  """(bound, spare): all above `bound` and the first `spare` at it are the `wanted` highest.

  Counts the upper halves of the numbers, then the lower ones where the bound lies: exact, in the
  memory of two tables, and no sorting.
  """
  bound = 0
  for shift in (16, 0):
    counts = np.zeros(2**16, np.int64)
    for _, order in pieces():
      order = order[order > 0]
      if not shift:
        order = order[order >> 16 == bound >> 16]
      counts += np.bincount(order >> shift & 0xFFFF, minlength=2**16)
    wanted = min(wanted, int(counts.sum()))  # Of scores there may be fewer.
    if not wanted:
      break
    above = np.cumsum(counts[::-1])[::-1] - counts  # How many are higher.
    half = int(np.flatnonzero(above + counts >= wanted)[-1])
    wanted -= int(above[half])
    bound |= half << shift
  return bound, wanted


def _scores(source, scores):
  """(float32 [n], whose they are: one of the source's levels)."""
  path = pathlib.Path(scores)
  if not path.exists():
    first = source[0]
    if scores in first:
      return _of_field(source, scores), source
    if not path.suffix and len(path.parts) == 1:
      numbers = [name for name, value in first.items() if _is_number(value)]
      raise UserError(
          f"scores={scores!r} is neither a file nor a field of the records of "
          f"{type(source).__name__}, whose numbers are {', '.join(map(repr, numbers)) or 'none'}.")
  values, header = read_scores(path)
  there = list(levels(source))
  for level in there:
    if len(level) == header["records"] and fingerprint(level) == header["source_fingerprint"]:
      return values, level
  has = " over ".join(f"{type(x).__name__} of {len(x):,}" for x in there)
  raise UserError(
      f"{path} holds the scores of another source: {header['source']} of {header['records']:,} "
      f"records, fingerprint {header['source_fingerprint']}. This one is {has}, "
      f"fingerprint {fingerprint(there[-1])}. Score this one with python -m clip_jax.score; the "
      "captions count too.")


def _of_field(source, name):
  """float32 [n], the number called `name` of every record; read once, then from a file."""
  def number(i):
    try:
      value = source[i].get(name)
    except UserError:
      raise
    except Exception:  # A record that cannot be read has no score.
      return np.nan
    if value is None:
      return np.nan
    if not _is_number(value):
      raise UserError(f"scores={name!r}: in record {i} it is {value!r}, which is no number.")
    return value

  def read():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      for start in range(0, len(source), 2**14):
        stop = min(start + 2**14, len(source))
        yield np.fromiter(pool.map(number, range(start, stop)), np.float32, stop - start)

  if len(source) < _REMEMBERED:
    return np.concatenate(list(read()))
  probes = [number(len(source) * k // 64) for k in range(64)]
  key = hashlib.sha256(f"{fingerprint(source)} {name} {probes}".encode()).hexdigest()[:16]
  home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  path = os.path.join(home, "clip_jax", f"{name}-{key}.npz")
  if os.path.exists(path):
    return read_scores(path)[0]
  values = np.concatenate(list(read()))
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_scores(path, values, source, field=name)
  except OSError:  # A home that cannot be written to: then they are read again next time.
    pass
  return values


def _is_number(value):
  return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
