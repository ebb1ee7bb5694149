"""Opens the input of `prepare` and divides it into pieces, one per output shard."""

from collections import Counter
from collections.abc import Callable, Iterator
import dataclasses
import functools
import os
from typing import Any, Protocol

from clip_jax.cli.config_files import load_function
from clip_jax.config import build
from clip_jax.data.column_names import AUTO, ORIGIN_FIELDS
from clip_jax.data.folder_walk import warn_skipped
from clip_jax.data.icons.icon_drawing import BrokenDrawing
from clip_jax.data.ingest.clean import Cleaning
from clip_jax.data.ingest.webdataset import KeyDot, samples
from clip_jax.data.outcomes import Dropped, Outcome, Taken
from clip_jax.data.paths import FOLLOW_LINKS, matching
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sample_parts import SampleParts
from clip_jax.data.sources.caption_files import CaptionFiles
from clip_jax.data.sources.caption_table import CaptionTable, OnError
from clip_jax.data.sources.folder import Folder
from clip_jax.data.sources.iconify import Iconify
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.parquet import Parquet
from clip_jax.data.table_rows import Quotes
from clip_jax.data.untrusted import NotAFile
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

# "folder" is one of the last three, see `job_flags`.
FORMATS = ("webdataset", "parquet", "table", "folder", "source", "iconify")
ICON_SIDE = 64  # Of drawings in pixels, unless max_side says otherwise.
TABLE, FILES, CLASSES = "folder with a table", "folder with caption files", "class folders"
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Built-in sources by name, with all texts that the vocabulary of a tokenizer should cover.
SOURCES = {"openclipart": lambda: OpenClipart("train", ("caption", "caption_long", "keywords"))}


@dataclasses.dataclass(frozen=True)
class Job:
  """The input and all settings that determine the contents of the shards.

  Attributes:
    where: files, a folder or a pattern; for the format "source" see `named_source`.
    format: one of FORMATS except "folder", or TABLE, FILES or CLASSES.
    image, text: names of the columns, or endings of the members or files; None for the usual ones.
    captions: name of the table, for TABLE.
    fields: names of further fields to keep; None for those of ORIGIN_FIELDS that exist.
    records_per_shard: number of records per shard. Not used for "webdataset", where each tar
      becomes one shard.
    image_root, delimiter, quotes, on_error: see `CaptionTable`; `image_root` also for "parquet".
    key_dot: see `webdataset.samples`.
    max_side, quality, max_text, language, unescape_html, fix_encoding, pixels: see `Cleaning`; for
      "iconify", `max_side` is the side of the drawings.
    licences: for "iconify", see `Iconify`.
  """

  where: str
  format: str
  image: str | None = None
  text: str | None = None
  captions: str | None = None
  fields: tuple[str, ...] | None = None
  records_per_shard: int = 10_000
  image_root: str | None = None
  delimiter: str | None = None
  quotes: Quotes = "csv"
  on_error: OnError = "raise"
  key_dot: KeyDot = "first"
  max_side: int | None = None
  quality: int = 92
  max_text: int = 2000
  language: str | None = None
  unescape_html: bool = False
  fix_encoding: bool = False
  pixels: bool = False
  licences: str = "permissive"

  @property
  def settings(self) -> dict[str, Any]:
    """All attributes except locations, because the input may move between runs."""
    left_out = ["where", "image_root"]
    # Notes of before lack fields that are newer than they.
    left_out += ["licences"] * (self.format != "iconify") + ["pixels"] * (not self.pixels)
    return {
      k: list(v) if isinstance(v, tuple) else v
      for k, v in dataclasses.asdict(self).items()
      if k not in left_out
    }

  @property
  def cleaning(self) -> Cleaning:
    """The options of `clean`."""
    return Cleaning(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Cleaning)})


class Input(Protocol):
  """Raw data in pieces, each of which becomes one shard.

  Attributes:
    unit: what is counted, in the plural.
    note: a line on how the input is read; "" if there is nothing to say.
    attribution: author and licence of each part of the input, if it knows them.
  """

  unit: str
  note: str
  attribution: list[dict[str, Any]]

  def __len__(self) -> int:
    """Returns the number of pieces."""

  def describe(self, piece: int) -> dict[str, Any]:
    """Returns what identifies the piece and shows whether it has changed."""

  def read(self, piece: int, find: Callable[[int], None]) -> Iterator[Outcome]:
    """Yields an outcome for every item of a piece; calls `find` first with the number of items."""


class TarFiles:
  """WebDataset input: each tar is one piece."""

  unit = "tar members"
  note = ""
  attribution: list[dict[str, Any]] = []  # noqa: RUF012  Tars do not say who made them.

  def __init__(self, where: str, parts: SampleParts, key_dot: KeyDot):
    skipped = Counter()
    self._filesystem, self._files = matching(where, TARS, skipped)
    warn_skipped(where, skipped, f"Note: {FOLLOW_LINKS}.")
    self._parts, self._key_dot = parts, key_dot

  def __len__(self) -> int:
    return len(self._files)

  def describe(self, piece: int) -> dict[str, Any]:
    """Returns the name and size of the tar."""
    file = self._files[piece]
    return {
      "input": os.path.basename(file),
      "input_bytes": self._filesystem.get_file_info(file).size,
    }

  def read(self, piece: int, find: Callable[[int], None]) -> Iterator[Outcome]:
    """Yields the outcomes of the members of a tar."""
    with self._filesystem.open_input_stream(self._files[piece], compression=None) as file:
      yield from samples(file, self._parts, lambda: find(1), self._key_dot)


class RecordRanges:
  """Input from a source: each piece is a range of `size` records.

  A source may count in other units than records. Then it has `unit`, `found` (number of items),
  `items` (number of items of each record), `left_out` (outcomes of the items that are in no record)
  and `outcomes(i)` (of the items of record i).
  """

  def __init__(self, source: Source, size: int):
    self._source, self._size = source, size
    self.unit = getattr(source, "unit", "records")
    self.note = source.describe() if isinstance(source, (CaptionTable, Iconify)) else ""
    self.attribution = source.attribution() if isinstance(source, Iconify) else []

  def __len__(self) -> int:
    return (len(self._source) + self._size - 1) // self._size

  def describe(self, piece: int) -> dict[str, Any]:
    """Returns the range of records and the length of the source."""
    end = min(len(self._source), (piece + 1) * self._size)
    return {"input": f"{piece * self._size}-{end - 1} of {len(self._source)}"}

  def read(self, piece: int, find: Callable[[int], None]) -> Iterator[Outcome]:
    """Yields the outcomes of a range; the first one has all that is in no record."""
    items = getattr(self._source, "items", None)
    if piece == 0 and items is not None:
      find(self._source.found - sum(items))  # type: ignore[attr-defined]
      yield from self._source.left_out  # type: ignore[attr-defined]
    read = getattr(self._source, "outcomes", None)
    for i in range(piece * self._size, min(len(self._source), (piece + 1) * self._size)):
      n = 1 if items is None else items[i]
      find(n)
      try:
        outcomes = [Taken(self._source[i], n)] if read is None else list(read(i))
      except UserError:
        raise
      except BrokenDrawing as error:
        outcomes = [Dropped(error.reason, n, error.key)]
      except FileNotFoundError:
        outcomes = [Dropped("no image", n)]
      except NotAFile:
        outcomes = [Dropped("not a file", n)]
      except UnicodeDecodeError:
        outcomes = [Dropped("invalid UTF-8", n)]
      except Dropped as dropped:
        outcomes = [Dropped(dropped.reason, n)]
      except Exception:  # Readers raise many kinds of errors for damaged data.
        outcomes = [Dropped("unreadable record", n)]
      yield from outcomes


@functools.lru_cache(1)
def open_inputs(job: Job) -> Input:
  """Opens the input of a job, once per process.

  Raises:
    UserError: the input is missing, empty or does not match the job.
  """
  if job.format == "webdataset":
    fields = ORIGIN_FIELDS if job.fields is None else job.fields
    return TarFiles(job.where, SampleParts.of(job.image, job.text, fields), job.key_dot)
  source = _source(job)
  if not len(source):
    left = Counter(x.reason for x in getattr(source, "left_out", ()) if isinstance(x, Dropped))
    reasons = f": {', '.join(f'{n:,} {why}' for why, n in left.most_common())}" if left else ""
    raise UserError(f"{job.where} has no records{reasons}.")
  return RecordRanges(source, job.records_per_shard)


def _source(job: Job) -> Source:
  image, text = job.image or AUTO, job.text or AUTO
  if job.format == "parquet":
    return Parquet(
      job.where,
      image,
      text,
      fields=job.fields,
      groups=2,
      image_root=job.image_root,
      language=job.language,
    )
  if job.format in ("table", TABLE):
    return CaptionTable(
      os.path.join(job.where, job.captions) if job.captions else job.where,
      image=image,
      text=text,
      image_root=job.image_root if job.format == "table" else job.where,
      fields=job.fields,
      delimiter=job.delimiter,
      quotes=job.quotes,
      on_error=job.on_error,
      language=job.language,
      check=False,
    )
  if job.format == "iconify":
    return Iconify(
      job.where, licences=job.licences, size=job.max_side or ICON_SIDE, pixels=job.pixels
    )
  if job.format == FILES:
    fields = ORIGIN_FIELDS if job.fields is None else job.fields
    return CaptionFiles(job.where, job.image, job.text, fields, job.language, check=False)
  return Folder(job.where, None) if job.format == CLASSES else named_source(job.where)


def named_source(where: str) -> Source:
  """Builds the source that --from names, for --format=source.

  Args:
    where: "openclipart"; a config file whose get_config() returns the call of a source, or an
      experiment with a data.source; or ArrayRecord files.

  Raises:
    UserError: `where` is none of these.
  """
  if where in SOURCES:
    return SOURCES[where]()
  if where.partition(":")[0].endswith(".py"):
    config = load_function(where, "get_config", "source")()
    return build(config.data.source if "data" in config else config)
  try:
    return ArrayRecord(where)
  except UserError as error:
    raise UserError(
      f"--from={where} is not a source; expected {', '.join(SOURCES)}, a config file (.py) "
      f"with a get_config() that returns a source, or ArrayRecord files: {error}"
    ) from error
