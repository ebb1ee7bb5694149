"""Parquet files, one row group at a time."""

import bisect
import concurrent.futures
import difflib
import itertools
import json
import threading
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from clip_jax.data.paths import matching
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError


class Parquet:
  """Source of the rows of one or more Parquet files; picklable, safe for many threads.

  A row group is read as a whole, and the last few are kept. So reading in order is fast, and in a
  random order each record costs its row group: for training on more than fits into the cache,
  write ArrayRecord files by `python -m clip_jax.prepare --format=parquet`.

  A record is {"image": encoded bytes, "text": str or list of str, "label": int, ...}, with what is
  asked for.

  Attributes:
    files: in the order in which their rows are numbered.
    classes: names of the labels; only where there is a `label` and the files name its classes, as
      Hugging Face's do.
  """

  def __init__(self, path: str, image: str = "image",
               text: str | tuple[str, ...] | None = "caption", label: str | None = None,
               fields: tuple[str, ...] = (), groups: int = 4):
    """Reads the end of every file, where the row groups and the columns are listed.

    Args:
      path: a file, a folder of *.parquet, or a pattern; may be gs://, s3://, hf://.
      image: column that is the image: bytes, or Hugging Face's struct of bytes and path.
      text: column that is the text: strings, or lists of them. Or several: then the text is a list
        of all of theirs. None for a table without.
      label: column of whole numbers that is the class, if any.
      fields: further columns, that records have under their own names.
      groups: row groups kept in memory, in each process; at least one for each reading thread that
        is somewhere else.

    Raises:
      UserError: no files, a truncated one, no such column, or one of another kind.
    """
    if groups < 1:
      raise UserError(f"groups {groups} is not a number of row groups, at least 1.")
    self._filesystem, self.files = matching(path, (".parquet",))
    self._image, self._label, self.groups = image, label, groups
    self._texts = (text,) if isinstance(text, str) else tuple(text or ())
    self._several = not isinstance(text, str)
    self._fields = tuple(fields)
    with concurrent.futures.ThreadPoolExecutor(min(32, len(self.files))) as pool:
      opened = list(pool.map(self._opened, self.files))
    for file, (schema, _) in zip(self.files, opened):
      self._check(schema, file)
    self._places = [(file, group) for file, (_, rows) in zip(self.files, opened)
                    for group in range(len(rows))]
    self._ends = list(itertools.accumulate(n for _, rows in opened for n in rows))
    classes = _classes(opened[0][0], label)
    if classes:
      self.classes = classes
    self._reset()

  def _reset(self):
    self._cache = {}  # Futures of tables by number of row group, the least recently used first.
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
      raise ValueError(f"Record {i} of {self._places[group][0]} has no image bytes.")
    record = {"image": image}
    if self._texts:
      texts = [value(column) for column in self._texts]
      record["text"] = _flat(texts) if self._several else _text(texts[0])
    if self._label:
      record["label"] = value(self._label)
    return record | {name: value(name) for name in self._fields}

  def _table(self, group):
    """The columns of a row group, read by the first thread that asks, waited for by the others."""
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
        future.set_result(self._read(*self._places[group]))
      except BaseException as error:
        with self._lock:
          self._cache.pop(group, None)  # The next one tries again.
        future.set_exception(error)
    return future.result()

  def _read(self, file, group):
    columns = [self._image, *self._texts, *self._fields]
    with self._filesystem.open_input_file(file) as opened:
      return pq.ParquetFile(opened).read_row_group(
          group, columns=columns + [self._label] * bool(self._label), use_threads=False)

  def _opened(self, file):
    """(schema, rows of each row group) of a file."""
    try:
      with self._filesystem.open_input_file(file) as opened:
        read = pq.ParquetFile(opened)
        groups = read.metadata
        return read.schema_arrow, [groups.row_group(g).num_rows
                                   for g in range(groups.num_row_groups)]
    except (pa.ArrowInvalid, OSError) as error:
      raise UserError(f"{file} is truncated or not a Parquet file: "
                      f"{str(error).partition(chr(10))[0]} Copy or write it again.") from error

  def _check(self, schema, file):
    for column, fits, wanted in (
        (self._image, _is_image, "bytes, or a struct with bytes"),
        *((text, _is_text, "strings, or lists of strings") for text in self._texts),
        *((field, lambda _: True, "") for field in self._fields),
        *((label, pa.types.is_integer, "whole numbers") for label in [self._label] if label)):
      if column not in schema.names:
        close = difflib.get_close_matches(column, schema.names, 1)
        raise UserError(
            f"{file} has no column {column!r}; it has {_columns(schema)}."
            + (f" Did you mean {close[0]!r}?" if close else ""))
      kind = schema.field(column).type
      if not fits(kind):
        raise UserError(f"The column {column!r} of {file} is {kind}, and {wanted} is wanted; "
                        f"there are {_columns(schema)}.")


def columns(path: str) -> list[str]:
  """Names of the columns of the first of the files that `path` means."""
  filesystem, files = matching(path, (".parquet",))
  with filesystem.open_input_file(files[0]) as opened:
    return list(pq.ParquetFile(opened).schema_arrow.names)


def _columns(schema):
  return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _is_binary(kind):
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind):
  return _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
                              and _is_binary(kind.field("bytes").type))


def _is_text(kind):
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    kind = kind.value_type
  return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _text(value):
  """str, or list of str; nothing is an empty text."""
  if isinstance(value, list):
    return [_text(one) for one in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value or ""


def _flat(values):
  """A list of str from one of str and lists of str."""
  return [text for value in map(_text, values)
          for text in ([value] if isinstance(value, str) else value)]


def _classes(schema, label):
  """Names of the labels, where Hugging Face's note in the schema has them."""
  note = (schema.metadata or {}).get(b"huggingface")
  if not label or not note:
    return ()
  return tuple(json.loads(note).get("info", {}).get("features", {}).get(label, {}).get("names", ()))
