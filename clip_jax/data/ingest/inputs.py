"""Opens the input of `prepare` and divides it into pieces, one per output shard."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import functools
import os
from typing import Any

from clip_jax.cli.config_files import load_function
from clip_jax.config import build
from clip_jax.data.folder_walk import warn_skipped
from clip_jax.data.ingest.clean import Dropped
from clip_jax.data.ingest.webdataset import samples
from clip_jax.data.paths import FOLLOW_LINKS, matching
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.folder import Folder
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.parquet import Parquet, columns
from clip_jax.data.untrusted import NotAFile
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

FORMATS = ("webdataset", "parquet", "folder", "source")
# Fields kept by default if present, because they document origin and licence.
FIELDS = ("key", "url", "license", "licence", "source", "author")
# Built-in sources by name, with all texts that the vocabulary of a tokenizer should cover.
SOURCES = {"openclipart": lambda: OpenClipart("train", ("caption", "caption_long", "keywords"))}


@dataclasses.dataclass(frozen=True)
class Job:
  """The input and all settings that determine the contents of the shards.

  Attributes:
    where: files, a folder or a pattern; for the format "source" see `named_source`.
    format: one of FORMATS.
    image, text: names of the columns, for "parquet" and "folder".
    captions: name of the table, for "folder"; None for class folders.
    fields: names of further fields to keep; None for those of FIELDS that exist.
    records_per_shard: number of records per shard. Not used for "webdataset", where each tar
      becomes one shard.
    max_side, quality, max_text: see `clean`.
  """

  where: str
  format: str
  image: str = "image"
  text: str = "caption"
  captions: str | None = "captions.jsonl"
  fields: tuple[str, ...] | None = None
  records_per_shard: int = 10_000
  max_side: int | None = None
  quality: int = 92
  max_text: int = 2000

  @property
  def settings(self) -> dict[str, Any]:
    """All attributes except `where`, because the input may move between runs."""
    return {
      k: list(v) if isinstance(v, tuple) else v
      for k, v in dataclasses.asdict(self).items()
      if k != "where"
    }


class TarFiles:
  """WebDataset input: each tar is one piece."""

  def __init__(self, where: str, fields: tuple[str, ...]):
    skipped = Counter()
    self._filesystem, self._files = matching(where, (".tar",), skipped)
    warn_skipped(where, skipped, f"Note: {FOLLOW_LINKS}.")
    self._fields = fields

  def __len__(self) -> int:
    return len(self._files)

  def describe(self, piece: int) -> dict[str, Any]:
    """Returns the name and size of the tar, which show whether it has changed."""
    file = self._files[piece]
    return {
      "input": os.path.basename(file),
      "input_bytes": self._filesystem.get_file_info(file).size,
    }

  def read(self, piece: int) -> Iterator[dict[str, Any] | Dropped]:
    """Yields the raw records of a piece, or a `Dropped` for each unreadable one."""
    with self._filesystem.open_input_stream(self._files[piece], compression=None) as file:
      yield from samples(file, self._fields)


class RecordRanges:
  """Input from a source: each piece is a range of `size` records."""

  def __init__(self, source: Source, size: int):
    self._source, self._size = source, size

  def __len__(self) -> int:
    return (len(self._source) + self._size - 1) // self._size

  def describe(self, piece: int) -> dict[str, Any]:
    """Returns the range of records and the length of the source, which show any change."""
    end = min(len(self._source), (piece + 1) * self._size)
    return {"input": f"{piece * self._size}-{end - 1} of {len(self._source)}"}

  def read(self, piece: int) -> Iterator[dict[str, Any] | Dropped]:
    """Yields the raw records of a piece, or a `Dropped` for each unreadable one."""
    for i in range(piece * self._size, min(len(self._source), (piece + 1) * self._size)):
      try:
        yield self._source[i]
      except UserError:
        raise
      except FileNotFoundError:
        yield Dropped("no image")
      except NotAFile:
        yield Dropped("not a file")
      except UnicodeDecodeError:
        yield Dropped("invalid UTF-8")
      except Exception:  # Readers raise many kinds of errors for damaged data.
        yield Dropped("unreadable record")


@functools.lru_cache(1)
def open_inputs(job: Job) -> TarFiles | RecordRanges:
  """Opens the input of a job, once per process.

  Raises:
    UserError: the input is missing, empty or does not match the job.
  """
  if job.format == "webdataset":
    return TarFiles(job.where, FIELDS if job.fields is None else job.fields)
  if job.format == "parquet":
    fields = job.fields
    if fields is None:
      fields = tuple(name for name in columns(job.where) if name in FIELDS)
    source: Source = Parquet(job.where, job.image, job.text, fields=fields, groups=2)
  elif job.format == "folder":
    source = Folder(job.where, job.captions, job.image, job.text, job.fields or (), check=False)
  else:
    source = named_source(job.where)
  if not len(source):
    raise UserError(f"{job.where} has no records.")
  return RecordRanges(source, job.records_per_shard)


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
