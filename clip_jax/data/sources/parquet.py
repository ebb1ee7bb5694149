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
from clip_jax.data.column_names import AUTO, ORIGIN_FIELDS, image_column, shown, text_column
from clip_jax.data.decode import MAX_BYTES
from clip_jax.data.folder_walk import is_inside, warn_skipped
from clip_jax.data.outcomes import Dropped, Taken
from clip_jax.data.paths import FOLLOW_LINKS, matching
from clip_jax.data.selection import record_number
from clip_jax.data.untrusted import NotAFile, read_regular
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
    image: str = AUTO,
    text: str | tuple[str, ...] | None = AUTO,
    label: str | None = None,
    fields: tuple[str, ...] | None = (),
    groups: Annotated[int, Range(1, 2**16)] = 4,
    image_root: FilePath | None = None,
    language: str | None = None,
  ):
    """Reads the footer of every file, which lists its row groups and columns.

    Args:
      path: a file, a folder of *.parquet files, or a pattern; local or gs://, s3:// or hf://.
      image: column with the image: bytes, a struct of bytes and path as Hugging Face writes it, or
        the path of a file in `image_root`; "auto" for the first of the usual names, in
        `column_names.IMAGE`, that the files have.
      text: column with the text: strings or lists of strings; "auto" likewise. If a tuple of
        columns, their texts are concatenated into one list. None for no text.
      label: column of integers with the class, if any.
      fields: further columns to include in the records under their own names; None for those of
        `ORIGIN_FIELDS` that exist.
      groups: number of row groups to cache per process; at least as many as there are threads that
        read from different places at a time.
      image_root: folder that the paths of images start from and may not leave.
      language: name of the text to use if the column has structs of texts, such as {"en": ...}.

    Raises:
      UserError: there are no files, a file is truncated, or a column is missing or has the wrong
        type.
    """
    path, self.skipped = os.fspath(path), Counter()
    self._filesystem, self.files = matching(path, (".parquet",), self.skipped)
    warn_skipped(path, self.skipped, f"Note: {FOLLOW_LINKS}.")
    self._label, self.groups, self.language = label, groups, language
    self._several = not isinstance(text, str)
    if image_root is not None and not os.path.isdir(image_root):
      raise UserError(f"There is no folder {image_root}, which image_root names.")
    self._image_root = None if image_root is None else os.path.realpath(os.fspath(image_root))
    with concurrent.futures.ThreadPoolExecutor(min(32, len(self.files))) as pool:
      opened = list(pool.map(self._read_footer, self.files))
    names = opened[0][0].names
    self._image = image_column(names, AUTO, self.files[0]) if image == AUTO else image
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    self._texts = tuple(
      text_column(names, AUTO, self.files[0]) if one == AUTO else one for one in texts
    )
    self._fields = tuple(ORIGIN_FIELDS if fields is None else fields)
    if fields is None:
      self._fields = tuple(name for name in names if name in self._fields)
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
    record = self._row(i)
    if not self._texts:
      return record
    text = record["text"]
    return record | {"text": self._flat(text) if self._several else self._text(text)}

  def outcomes(self, i: int) -> list[Taken]:
    """Returns row `i` with its text as it is stored, which may be null or no text."""
    return [Taken(self._row(i))]

  def _row(self, i):
    i = record_number(i, len(self))
    group = bisect.bisect_right(self._ends, i)
    row = i - (self._ends[group - 1] if group else 0)
    table = self._table(group)

    def value(column):
      return table.column(column)[row].as_py()

    record = {"image": self._image_bytes(value(self._image), i, group)}
    if self._texts:
      texts = [value(column) for column in self._texts]
      flat = [one for text in texts for one in (text if isinstance(text, list) else [text])]
      record["text"] = flat if self._several else texts[0]
    if self._label:
      record["label"] = value(self._label)
    return record | {name: value(name) for name in self._fields}

  def _text(self, value):
    """Returns str or list of str; null becomes an empty text."""
    if isinstance(value, dict):
      value = value.get(self.language)
    if isinstance(value, list):
      return [self._text(one) for one in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value or ""

  def _flat(self, values):
    """Flattens a list of str and lists of str into a list of str."""
    texts = [self._text(value) for value in values]
    return [one for text in texts for one in ([text] if isinstance(text, str) else text)]

  def _image_bytes(self, image, i, group):
    path = None
    if isinstance(image, dict):
      image, path = image.get("bytes"), image.get("path")
    if isinstance(image, list):  # A list of uint8, such as the bytes of a NumPy array.
      image = bytes(image) or None
    if isinstance(image, str):
      image, path = None, image
    if image is not None:
      return image
    file = self._row_groups[group][0]
    if path is None:
      raise Dropped("no image")
    if self._image_root is None:
      raise Dropped("no image bytes, only a path")
    where = os.path.join(self._image_root, path)
    if not is_inside(self._image_root, where):
      raise NotAFile(f"Record {i} of {file}: {path!r:.100} is outside {self._image_root}.")
    return read_regular(where, MAX_BYTES)

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
    used = {self._image, *self._texts, *self._fields, self._label}
    twice = [name for name, n in Counter(schema.names).items() if n > 1 and name in used]
    if twice:
      raise UserError(f"{file} has several columns named {shown(twice)}. Rename them.")
    for column, fits, wanted in (
      (self._image, _is_image, "bytes, a struct with bytes, or paths"),
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
    if _is_string(schema.field(self._image).type) and self._image_root is None:
      raise UserError(
        f"Column {self._image!r} of {file} has paths of images. Set image_root=DIR "
        "(--image_root=DIR) to the folder that they start from."
      )
    for column in self._texts if self.language is None else ():
      kind = schema.field(column).type
      if _arrow().types.is_struct(kind):
        raise UserError(
          f"Column {column!r} of {file} has texts by name: {shown(f.name for f in kind)}. Choose "
          "one of them with language=NAME (--language=NAME)."
        )


def columns(path: str) -> list[str]:
  """Returns the column names of the first file that matches `path`."""
  filesystem, files = matching(path, (".parquet",))
  with filesystem.open_input_file(files[0]) as opened:
    return list(optional("pyarrow.parquet", "parquet").ParquetFile(opened).schema_arrow.names)


def _columns(schema):
  return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _plain(kind):
  """The type of the values of a dictionary-encoded column, or `kind` itself."""
  return kind.value_type if _arrow().types.is_dictionary(kind) else kind


def _is_binary(kind):
  types = _arrow().types
  binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
  return any(is_kind(_plain(kind)) for is_kind in (*binary, types.is_fixed_size_binary))


def _is_string(kind):
  types = _arrow().types
  strings = (types.is_string, types.is_large_string, types.is_string_view)
  return any(is_kind(_plain(kind)) for is_kind in strings)


def _is_list(kind):
  types = _arrow().types
  lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
  views = [getattr(types, name, None) for name in ("is_list_view", "is_large_list_view")]
  return any(is_kind(kind) for is_kind in (*lists, *filter(None, views)))


def _is_image(kind):
  types = _arrow().types
  if types.is_struct(kind):
    fields = [
      kind.field(name).type for name in ("bytes", "path") if kind.get_field_index(name) >= 0
    ]
    return any(map(_is_image, fields))
  if _is_list(kind):
    return types.is_uint8(kind.value_type)
  return _is_binary(kind) or _is_string(kind) or types.is_null(kind)


def _is_text(kind):
  types = _arrow().types
  if _is_list(kind):
    kind = kind.value_type
  if types.is_struct(kind):  # Texts by language.
    return all(_is_text(kind.field(i).type) for i in range(kind.num_fields))
  return _is_string(kind) or _is_binary(kind) or types.is_null(kind)


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
