"""Reads records from Parquet files, one row group at a time."""

import bisect
from collections import Counter
import concurrent.futures
import itertools
import json
import os
import threading
from typing import Annotated, Any

from clip_jax.cli.optional import optional
from clip_jax.cli.suggest import did_you_mean
from clip_jax.cli.values import FilePath, Range, checked
from clip_jax.data.folder_walk import warn_skipped
from clip_jax.data.paths import FOLLOW_LINKS, matching
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError


@checked
class Parquet:
  """Source of the rows of one or more Parquet files; picklable and thread-safe.

  Reads whole row groups and caches the most recently used ones. Sequential access is therefore
  fast, but random access reads a row group per record. To train on more data than fits into the
  cache, convert the files with `python -m clip_jax.prepare --format=parquet`.

  A record is {"image": encoded bytes, "text": str or list of str, "label": int, ...}, where "text",
  "label" and further fields are present if requested.

  Attributes:
    files: paths of the files; rows are numbered in this order.
    classes: class names by label; only with a `label` and files that store its class names, as
      those of Hugging Face do.
    skipped: number of files of the folder that were skipped, by reason; see `folder_walk`.
  """

  def __init__(
    self,
    path: FilePath,
    image: str = "image",
    text: str | tuple[str, ...] | None = "caption",
    label: str | None = None,
    fields: tuple[str, ...] = (),
    groups: Annotated[int, Range(1, 2**16)] = 4,
  ):
    """Reads the footer of every file, which lists its row groups and columns.

    Args:
      path: a file, a folder of *.parquet files, or a pattern; local or gs://, s3:// or hf://.
      image: column with the image: bytes, or a struct of bytes and path as Hugging Face writes it.
      text: column with the text: strings or lists of strings. If a tuple of columns, their texts
        are concatenated into one list. None for no text.
      label: column of integers with the class, if any.
      fields: further columns to include in the records under their own names.
      groups: number of row groups to cache per process; at least as many as there are threads that
        read from different places at a time.

    Raises:
      UserError: there are no files, a file is truncated, or a column is missing or has the wrong
        type.
    """
    path, self.skipped = os.fspath(path), Counter()
    self._filesystem, self.files = matching(path, (".parquet",), self.skipped)
    warn_skipped(path, self.skipped, f"Note: {FOLLOW_LINKS}.")
    self._image, self._label, self.groups = image, label, groups
    self._texts = (text,) if isinstance(text, str) else tuple(text or ())
    self._several = not isinstance(text, str)
    self._fields = tuple(fields)
    with concurrent.futures.ThreadPoolExecutor(min(32, len(self.files))) as pool:
      opened = list(pool.map(self._read_footer, self.files))
    for file, (schema, _) in zip(self.files, opened):
      self._check(schema, file)
    self._row_groups = [
      (file, group) for file, (_, rows) in zip(self.files, opened) for group in range(len(rows))
    ]
    self._ends = list(itertools.accumulate(n for _, rows in opened for n in rows))
    classes = _classes(opened[0][0], label)
    if classes:
      self.classes = classes
    self._reset()

  def _reset(self):
    self._cache = {}  # Future of the table by row group, least recently used first.
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._reset()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    group = bisect.bisect_right(self._ends, i)
    row = i - (self._ends[group - 1] if group else 0)
    table = self._table(group)

    def value(column):
      return table.column(column)[row].as_py()

    image = value(self._image)
    if isinstance(image, dict):
      image = image["bytes"]
    if image is None:
      raise ValueError(f"Record {i} of {self._row_groups[group][0]} has no image bytes.")
    record = {"image": image}
    if self._texts:
      texts = [value(column) for column in self._texts]
      record["text"] = _flat(texts) if self._several else _text(texts[0])
    if self._label:
      record["label"] = value(self._label)
    return record | {name: value(name) for name in self._fields}

  def _table(self, group):
    """Returns the columns of a row group; one thread reads it and the others wait."""
    with self._lock:
      future = self._cache.pop(group, None)
      ours = future is None
      if ours:
        future = concurrent.futures.Future()
        while len(self._cache) >= self.groups:
          self._cache.pop(next(iter(self._cache)))
      self._cache[group] = future
    if ours:
      try:
        future.set_result(self._read(*self._row_groups[group]))
      except BaseException as error:
        with self._lock:
          self._cache.pop(group, None)  # Let the next call retry.
        future.set_exception(error)
    return future.result()

  def _read(self, file, group):
    columns = [self._image, *self._texts, *self._fields]
    with self._filesystem.open_input_file(file) as opened:
      return (
        optional("pyarrow.parquet", "parquet")
        .ParquetFile(opened)
        .read_row_group(
          group, columns=columns + [self._label] * bool(self._label), use_threads=False
        )
      )

  def _read_footer(self, file):
    """Returns (schema, number of rows of each row group) of a file."""
    try:
      with self._filesystem.open_input_file(file) as opened:
        read = optional("pyarrow.parquet", "parquet").ParquetFile(opened)
        groups = read.metadata
        return read.schema_arrow, [
          groups.row_group(g).num_rows for g in range(groups.num_row_groups)
        ]
    except (_arrow().ArrowInvalid, OSError) as error:
      raise UserError(
        f"{file} is truncated or not a Parquet file: "
        f"{str(error).partition(chr(10))[0]} Copy or write it again."
      ) from error

  def _check(self, schema, file):
    for column, fits, wanted in (
      (self._image, _is_image, "bytes or a struct with bytes"),
      *((text, _is_text, "strings or lists of strings") for text in self._texts),
      *((field, lambda _: True, "") for field in self._fields),
      *((label, _arrow().types.is_integer, "integers") for label in [self._label] if label),
    ):
      if column not in schema.names:
        raise UserError(
          f"{file} has no column {column!r}; it has {_columns(schema)}."
          f"{did_you_mean(column, schema.names)}"
        )
      kind = schema.field(column).type
      if not fits(kind):
        raise UserError(
          f"Column {column!r} of {file} has type {kind}; expected {wanted}. The "
          f"file has {_columns(schema)}."
        )


def columns(path: str) -> list[str]:
  """Returns the column names of the first file that matches `path`."""
  filesystem, files = matching(path, (".parquet",))
  with filesystem.open_input_file(files[0]) as opened:
    return list(optional("pyarrow.parquet", "parquet").ParquetFile(opened).schema_arrow.names)


def _columns(schema):
  return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _is_binary(kind):
  return _arrow().types.is_binary(kind) or _arrow().types.is_large_binary(kind)


def _is_image(kind):
  return _is_binary(kind) or (
    _arrow().types.is_struct(kind)
    and kind.get_field_index("bytes") >= 0
    and _is_binary(kind.field("bytes").type)
  )


def _is_text(kind):
  if _arrow().types.is_list(kind) or _arrow().types.is_large_list(kind):
    kind = kind.value_type
  return _arrow().types.is_string(kind) or _arrow().types.is_large_string(kind) or _is_binary(kind)


def _text(value):
  """Returns str or list of str; null becomes an empty text."""
  if isinstance(value, list):
    return [_text(one) for one in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value or ""


def _flat(values):
  """Flattens a list of str and lists of str into a list of str."""
  return [
    text for value in map(_text, values) for text in ([value] if isinstance(value, str) else value)
  ]


def _classes(schema, label):
  """Returns the class names from the Hugging Face metadata in the schema, if any."""
  note = (schema.metadata or {}).get(b"huggingface")
  if not label or not note:
    return ()
  try:
    found = json.loads(note)
    for name in ("info", "features", label, "names"):
      found = found[name]
  except (ValueError, RecursionError, KeyError, TypeError):  # Or written by something else.
    return ()
  known = isinstance(found, list) and all(isinstance(name, str) for name in found)
  return tuple(found) if known else ()


def _arrow():
  return optional("pyarrow", "parquet")
