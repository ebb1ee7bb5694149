"""What a run has seen so far: its batch sizes by step, and fingerprints of its data and tokenizer.

A run that resumes with another batch size goes on in the data where it stopped, and its samples,
epochs and FLOPs are those that it really had. `history.json` in the workdir is written at each
start; workdirs from before it have one batch size, that of their config.
"""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from clip_jax.data.score_file import hash_record
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.interfaces import Source, Tokenizer

NAME = "history.json"
FORMAT = 1
_UNREADABLE = "?"
# Records in the fingerprint of the data, apart from the last one. They are few, because reading a
# record of a Parquet file decodes many others.
_RECORDS = 8
# Texts that tokenizers treat differently: cases, digits, punctuation, spaces, scripts, long words.
_PROBES = (
  "A red flag, flying over the old town hall in 1987.",
  "  the   Quick BROWN fox\tjumps\nover 13 lazy dogs!?",
  "naïve café — “quoted” text, the end… 50% & more",
  "ein Bild von München; une église; año nuevo",
  "猫がソファで寝ている Кошка спит на диване",
  "antidisestablishmentarianism " * 40,
  "",
)


@dataclasses.dataclass(frozen=True)
class Segment:
  """Steps with the same batch size.

  Attributes:
    start: number of steps before the first one.
    batch_size: examples per step.
    flops: FLOPs of a training step per example.
  """

  start: int
  batch_size: int
  flops: float


@dataclasses.dataclass(frozen=True)
class History:
  """The segments of a run, in order; the last one has no end."""

  segments: tuple[Segment, ...]

  @classmethod
  def new(cls, batch_size: int, flops: float) -> "History":
    """Returns the history of a run that starts now."""
    return cls((Segment(0, batch_size, flops),))

  def samples(self, step: int) -> int:
    """Number of examples seen in the first `step` steps."""
    return sum(n * one.batch_size for n, one in self._steps(step))

  def flops(self, step: int) -> float:
    """FLOPs of the first `step` steps."""
    return sum(n * one.batch_size * one.flops for n, one in self._steps(step))

  def _steps(self, step):
    """Pairs of a number of steps and their segment, up to `step`."""
    ends = [one.start for one in self.segments[1:]]
    for one, end in zip(self.segments, [*ends, step]):
      yield max(0, min(end, step) - one.start), one

  def steps_for(self, samples: float) -> int:
    """The first step at which at least this many examples are seen."""
    seen = 0
    for one, after in zip(self.segments, self.segments[1:]):
      more = (after.start - one.start) * one.batch_size
      if seen + more >= samples:
        return one.start - int(-(samples - seen) // one.batch_size)
      seen += more
    last = self.segments[-1]
    return last.start - int(-(samples - seen) // last.batch_size)

  def resumed(self, start: int, batch_size: int, flops: float) -> "History":
    """Returns the history of a run that resumes at step `start`; what it saw later is forgotten."""
    past = tuple(one for one in self.segments if one.start < start)
    if past and (past[-1].batch_size, past[-1].flops) == (batch_size, flops):
      return History(past)
    return History((*past, Segment(start, batch_size, flops)))


@dataclasses.dataclass(frozen=True)
class Record:
  """The content of history.json.

  Attributes:
    history: the segments.
    data: fingerprint of the records, see `data_fingerprint`.
    tokenizer: fingerprint of the tokenizer.
  """

  history: History
  data: str
  tokenizer: str

  @classmethod
  def read(cls, workdir: Path) -> "Record | None":
    """Reads history.json; None if there is none.

    Raises:
      UserError: it is damaged, or of a newer format.
    """
    path = workdir / NAME
    try:
      text = path.read_text("utf-8")
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      raise _damaged(path, str(error)) from error
    try:
      found = json.loads(text)
      if found["format"] != FORMAT:
        raise UserError(
          f"{path} has format {found['format']!r}; this version reads format {FORMAT}. Resume the "
          "run with the version that wrote it, or a newer one."
        )
      segments = tuple(Segment(**one) for one in found["segments"])
      record = cls(History(segments), found["data"], found["tokenizer"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if isinstance(error, UserError):
        raise
      raise _damaged(path, f"{type(error).__name__}: {error}") from error
    starts = [one.start for one in segments]
    if (
      not all(type(n) is int for one in segments for n in (one.start, one.batch_size))
      or not all(one.batch_size > 0 and isinstance(one.flops, (int, float)) for one in segments)
      or starts[:1] != [0]
      or starts != sorted(set(starts))
    ):
      raise _damaged(path, "its segments are not steps from 0 on with a batch size each")
    return record

  def write(self, workdir: Path) -> None:
    """Writes history.json atomically."""
    content = {
      "format": FORMAT,
      "data": self.data,
      "tokenizer": self.tokenizer,
      "segments": [dataclasses.asdict(one) for one in self.history.segments],
    }
    write_atomically(workdir / NAME, json.dumps(content, indent=1) + "\n")


def _damaged(path, why):
  return UserError(
    f"{path} is damaged: {why}. Restore it, or remove it to count all steps of the run with the "
    "batch size that its newest checkpoint was trained with."
  )


def data_fingerprint(source: Source) -> str:
  """The number of records and a hash of the image and texts of a few; "?" if it is unreadable."""
  n, hashes = len(source), []
  for i in sorted({n * k // _RECORDS for k in range(_RECORDS)} | {n - 1}):
    seen = hashlib.sha256()
    try:
      hash_record(seen, source[i])
    except UserError:
      raise
    except Exception:  # Readers raise all kinds of errors.
      hashes.append(_UNREADABLE)
    else:
      hashes.append(seen.hexdigest()[:8])
  return " ".join([str(n), *hashes])


def is_same_data(old: str, new: str) -> bool:
  """Whether two fingerprints are of the same data; a record may be unreadable for a while."""
  pairs = list(itertools.zip_longest(old.split(" "), new.split(" ")))
  return all(a == b or (_UNREADABLE in (a, b) and None not in (a, b)) for a, b in pairs)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
  """Hash of the tokens that a tokenizer makes of some texts."""
  tokens = np.asarray(tokenizer(_PROBES))
  seen = hashlib.sha256(f"{tokenizer.vocab_size} {tokens.shape}".encode())
  seen.update(tokens.astype("<i4").tobytes())
  return seen.hexdigest()[:16]


def check_length(history: History, start: int, total: int) -> None:
  """Raises UserError if a run that resumes is longer already than its config says."""
  if start > total:
    raise UserError(
      f"The run has made {start:,} steps of {history.samples(start):,} samples in total, and the "
      f"config ends it at step {total:,}. Set a length of at least that, such as "
      f"--config.train.steps={start}, or use another --workdir."
    )
