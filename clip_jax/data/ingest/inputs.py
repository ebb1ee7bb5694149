"""What is prepared, cut into pieces of which each becomes one shard."""

from collections.abc import Iterator
import dataclasses
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from clip_jax.config import build
from clip_jax.data.ingest.clean import Dropped
from clip_jax.data.ingest.webdataset import samples
from clip_jax.data.paths import matching
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.folder import Folder
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.parquet import Parquet, columns
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

FORMATS = ("webdataset", "parquet", "folder", "source")
# Kept without being asked for, where there are any: whose it is, and under which terms.
FIELDS = ("key", "url", "license", "licence", "source", "author")
# name: makes the source with every text that a vocabulary should cover.
SOURCES = {"openclipart": lambda: OpenClipart("train", ("caption", "caption_long", "keywords"))}


@dataclasses.dataclass(frozen=True)
class Job:
  """What is read, and what is done to each record; all that the shards depend on.

  Attributes:
    where: of the input: files, a folder or a pattern; for the format "source" see `named_source`.
    format: one of FORMATS.
    image, text: column or entry names, for "parquet" and "folder".
    captions: the table, for "folder"; None for folders of classes.
    fields: that records keep; None for those of FIELDS that there are.
    records_per_shard: for all formats but "webdataset", where a tar becomes a shard.
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
    """All but the place, which may change between two runs."""
    return {k: list(v) if isinstance(v, tuple) else v
            for k, v in dataclasses.asdict(self).items() if k != "where"}


class Tars:
  """A tar a piece."""

  def __init__(self, where: str, fields: tuple[str, ...]):
    self._filesystem, self._files = matching(where, (".tar",))
    self._fields = fields

  def __len__(self) -> int:
    return len(self._files)

  def describe(self, piece: int) -> dict[str, Any]:
    """Name and bytes, by which a tar that has changed is recognised."""
    file = self._files[piece]
    return {"input": os.path.basename(file),
            "input_bytes": self._filesystem.get_file_info(file).size}

  def read(self, piece: int) -> Iterator[dict[str, Any] | Dropped]:
    """Raw records of the piece, and reasons for those that there are not."""
    with self._filesystem.open_input_stream(self._files[piece], compression=None) as file:
      yield from samples(file, self._fields)


class Ranges:
  """So many records of a source a piece."""

  def __init__(self, source: Source, size: int):
    self._source, self._size = source, size

  def __len__(self) -> int:
    return (len(self._source) + self._size - 1) // self._size

  def describe(self, piece: int) -> dict[str, Any]:
    """Its first and its last record, and how many there are in all."""
    end = min(len(self._source), (piece + 1) * self._size)
    return {"input": f"{piece * self._size}-{end - 1} of {len(self._source)}"}

  def read(self, piece: int) -> Iterator[dict[str, Any] | Dropped]:
    """Raw records of the piece, and reasons for those that there are not."""
    for i in range(piece * self._size, min(len(self._source), (piece + 1) * self._size)):
      try:
        yield self._source[i]
      except UserError:
        raise
      except FileNotFoundError:
        yield Dropped("no image")
      except UnicodeDecodeError:
        yield Dropped("invalid UTF-8")
      except Exception:  # Whatever a reader throws at broken bytes.
        yield Dropped("unreadable record")


@functools.lru_cache(1)
def opened(job: Job) -> Tars | Ranges:
  """The input of a job, opened once in each process.

  Raises:
    UserError: it is not there, or not as the job says.
  """
  if job.format == "webdataset":
    return Tars(job.where, FIELDS if job.fields is None else job.fields)
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
  return Ranges(source, job.records_per_shard)


def named_source(where: str) -> Source:
  """The source that --from means.

  Args:
    where: "openclipart"; a config file whose get_config() is the call of a source, or a whole
      experiment, of which data.source counts; or ArrayRecord files.

  Raises:
    UserError: it is none of these.
  """
  if where in SOURCES:
    return SOURCES[where]()
  file, _, argument = where.partition(":") if ".py:" in where else (where, "", "")
  if file.endswith(".py") and Path(file).is_file():
    spec = importlib.util.spec_from_file_location("prepared_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    return build(config.data.source if "data" in config else config)
  try:
    return ArrayRecord(where)
  except UserError as error:
    raise UserError(
        f"--from={where} is not a source; there are {', '.join(SOURCES)}, a config file (.py) "
        f"whose get_config() makes a source, and ArrayRecord files: {error}") from error
