"""Reads the rows of tables: CSV, TSV and other separators, JSON lines and JSON lists.

A row that is not clearly one record is reported with its line, never guessed: quotes must open and
close a whole field, and every row must have as many fields as the header.
"""

import codecs
from collections import Counter, deque
from collections.abc import Callable, Iterator
import dataclasses
import io
import itertools
import json
import os
import re
from typing import Any, Literal, TextIO

from clip_jax.data import column_names
from clip_jax.data.untrusted import open_regular, text_lines
from clip_jax.errors import UserError

ENDINGS = (".jsonl", ".csv", ".tsv", ".json", ".ndjson", ".txt")
DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
Quotes = Literal["csv", "literal"]
_MOST_LINES = 1000  # Of a row; a quote that is never closed would swallow the file.
_MOST_LIST = 2**31  # Bytes of a JSON list, which is read whole.
_IMAGE_NAME = re.compile(r"[^\s\"]\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # As "surrogateescape" reads bytes that are not UTF-8.
_BROKEN = (ValueError, RecursionError)


@dataclasses.dataclass(frozen=True, slots=True)
class BadRow:
  """A row that cannot be read as one record.

  Attributes:
    reason: one of a few; rows are counted by it.
    detail: what is wrong with this row, for a message.
  """

  reason: str
  detail: str = ""


Row = dict[str, Any] | BadRow


@dataclasses.dataclass(frozen=True)
class TableRows:
  """The rows of a table, read once per iteration.

  Attributes:
    path: the file.
    columns: names in the header; of JSON, the fields of the first row that can be read.
    delimiter: the character between fields; None for JSON.
    note: how the delimiter was found, if it was guessed; else "".
  """

  path: str
  columns: tuple[str, ...]
  delimiter: str | None
  note: str
  quotes: Quotes

  def __iter__(self) -> Iterator[tuple[int, Row]]:
    """Yields (number of the line, counted from 1, on which the row starts; the row)."""
    try:
      with _open(self.path) as file:
        if self.delimiter is None:
          yield from _json_rows(file)
        else:
          yield from self._delimited(file)
    except UnicodeDecodeError as error:
      raise UserError(f"{self.path} is not UTF-8: {error}. Convert it to UTF-8.") from error
    except (*_BROKEN, OSError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(f"{self.path} cannot be read as a table: {error}.") from error

  def _delimited(self, file):
    rows = _split(enumerate(text_lines(file), 1), self.delimiter, self.quotes, len(self.columns))
    next(rows, None)  # The header.
    for number, fields in rows:
      if isinstance(fields, BadRow):
        yield number, fields
      elif len(fields) != len(self.columns):
        few = "too few fields" if len(fields) < len(self.columns) else "too many fields"
        detail = f"it has {len(fields)}, but the header has {len(self.columns)}"
        yield number, BadRow(few, detail)
      else:
        yield number, dict(zip(self.columns, fields))


def open_table(path: str, delimiter: str | None = None, quotes: Quotes = "csv") -> TableRows:
  """Opens a table and reads its header.

  Args:
    path: a local file in UTF-8, or in UTF-16 with a byte order mark as Excel writes it. JSON if it
      ends in .jsonl, .ndjson or .json; otherwise delimited text with a header.
    delimiter: the character between fields, or a name in `DELIMITERS`; None for a comma in a .csv
      and a tab in a .tsv if the header has one, and for the character that fits the header best
      otherwise.
    quotes: "csv" if fields with special characters are quoted; "literal" if quotes are ordinary
      characters, as in TSV files without quoting.

  Raises:
    UserError: the file is missing, empty or not text, or its header is malformed.
  """
  if path.lower().endswith((".jsonl", ".ndjson", ".json")):
    if delimiter is not None or quotes != "csv":
      raise UserError(f"{path}: delimiter and quotes apply to CSV and TSV files only, not to JSON.")
    rows = TableRows(path, (), None, "", quotes)
    first = next((row for _, row in rows if not isinstance(row, BadRow)), ())
    return TableRows(path, tuple(map(str, first)), None, "", quotes)
  try:
    with _open(path) as file:
      line, note = next((line for line in text_lines(file) if line.strip()), ""), ""
      if not line:
        raise UserError(f"{path} is empty; expected a header and rows.")
      if delimiter is None:
        delimiter, note = _guess(path, line)
      delimiter = DELIMITERS.get(delimiter, "\t" if delimiter == "\\t" else delimiter)
      if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(
          f"delimiter {delimiter!r} is not a single character or one of {', '.join(DELIMITERS)}."
        )
      lines = enumerate(itertools.chain((line,), text_lines(file)), 1)
      _, header = next(_split(lines, delimiter, quotes, 1))
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8: {error}. Convert it to UTF-8.") from error
  except (*_BROKEN, OSError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{path} cannot be read as a table: {error}.") from error
  if isinstance(header, BadRow):
    raise UserError(f"{path}, line 1: the header has {header.reason}. {header.detail}".strip())
  columns = tuple(name.strip() for name in header)
  twice = [name for name, n in Counter(columns).items() if n > 1]
  if twice:
    raise UserError(
      f"{path} has several columns named {column_names.shown(twice)}. Rename them in the header."
    )
  return TableRows(path, columns, delimiter, note, quotes)


def _open(path: str) -> TextIO:
  """Opens a text file; bytes that are not UTF-8 become halves of surrogate pairs."""
  file = open_regular(path)
  start = file.read(4)
  file.seek(0)
  wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  # "surrogateescape" keeps the position of bytes that are not UTF-8, so that their row is named.
  encoding, errors = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
  return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


def _guess(path, header):
  """Returns (delimiter, note) for a header."""
  outside = re.sub(r'"[^"]*"', "x", header.rstrip("\r\n"))
  own = {".tsv": "\t", ".csv": ","}.get(os.path.splitext(path)[1].lower())
  found = [d for d in DELIMITERS.values() if d in outside]
  if not found:
    raise UserError(
      f"{path}: the header {header.strip()!r:.100} has a single column. Expected the names of the "
      "columns, separated by commas, tabs, semicolons or |; pass another one as delimiter=."
    )
  best = max(
    found,
    key=lambda d: (
      column_names.known(part.strip(' "') for part in outside.split(d)),
      d == own,
      outside.count(d),
    ),
  )
  name = next(name for name, d in DELIMITERS.items() if d == best)
  return best, "" if best == own else f"delimiter {name}, guessed from the header"


class _Malformed(Exception):
  pass


def _split(
  lines: Iterator[tuple[int, str]], delimiter: str, quotes: Quotes, columns: int
) -> Iterator[tuple[int, list[str] | BadRow]]:
  """Splits numbered lines into rows of fields; after a bad row, continues on the next line."""
  waiting: deque[tuple[int, str]] = deque()

  def take():
    return waiting.popleft() if waiting else next(lines, None)

  while (entry := take()) is not None:
    number, line = entry
    if not line.isascii() and _NOT_UTF8.search(line):
      yield number, BadRow("invalid UTF-8", "convert the table to UTF-8")
      continue
    if quotes == "literal" or '"' not in line:
      line = line.rstrip("\r\n")
      if line:
        yield number, line.split(delimiter)
      continue
    used: list[tuple[int, str]] = []

    def more(used=used):
      entry = take() if len(used) < _MOST_LINES else None
      if entry is not None:
        used.append(entry)
      return entry and entry[1]

    try:
      fields = _quoted_fields(line, more, delimiter)
      if used and any(_holds_a_row(field, delimiter, columns) for field in fields):
        raise _Malformed("unclosed quote", "a quoted field holds what looks like further rows")
      yield number, fields
    except _Malformed as error:
      waiting.extendleft(reversed(used))  # Only this line is bad: the next may be a good row.
      yield number, BadRow(*error.args)


def _quoted_fields(text: str, more: Callable[[], str | None], delimiter: str) -> list[str]:
  """Splits a row in which some fields are quoted; `more` returns its next line."""
  fields, at = [], 0
  while True:
    if text[at : at + 1] == '"':
      parts, at = [], at + 1
      while not _closes(text, end := text.find('"', at)):
        if end >= 0:  # A doubled quote stands for one.
          parts.append(text[at : end + 1])
          at = end + 2
          continue
        parts.append(text[at:])
        line, at = more(), 0
        if line is None:
          raise _Malformed("unclosed quote", "no later line closes it")
        text = line
      parts.append(text[at:end])
      fields.append("".join(parts))
      at = end + 1
      if not text[at:].strip("\r\n"):
        return fields
      if text[at] != delimiter:
        raise _Malformed("unclosed quote", f"text follows a closing quote: {text[end:]!r:.60}")
      at += 1
    else:
      end = text.find(delimiter, at)
      field = text[at:end] if end >= 0 else text[at:].rstrip("\r\n")
      if '"' in field:
        raise _Malformed(
          "quote inside an unquoted field",
          f'{field!r:.60}; quote the field and double the quote, or set quotes="literal"',
        )
      fields.append(field)
      if end < 0:
        return fields
      at = end + 1


def _closes(text, end):
  """Whether the quote at `end` closes a field, that is, exists and is not doubled."""
  return end >= 0 and text[end + 1 : end + 2] != '"'


def _holds_a_row(field, delimiter, columns):
  """Whether a quoted field swallowed another row, because of a quote that was never closed."""
  return any(
    line.count(delimiter) >= columns - 1 > 0 and any(map(_IMAGE_NAME.search, line.split(delimiter)))
    for line in field.splitlines()[:_MOST_LINES]
  )


def _json_rows(file: TextIO) -> Iterator[tuple[int, Row]]:
  """Yields the rows of JSON lines, or of a list of objects."""
  if file.read(1000).lstrip()[:1] == "[":
    file.seek(0)
    yield from _json_list(file)
    return
  file.seek(0)
  for number, line in enumerate(text_lines(file), 1):
    if line.strip():
      try:
        yield number, _object(json.loads(_checked(line)))
      except _BROKEN as error:
        yield number, BadRow("not JSON", _reason(error))


def _json_list(file):
  """Yields the objects of a list, one at a time, so that all are never in memory at once."""
  text = file.read(_MOST_LIST + 1)
  if len(text) > _MOST_LIST:
    raise ValueError(f"it has more than {_MOST_LIST:,} characters; write one object per line")
  parse, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
  number, before = 1, 0
  at = space.match(text, text.index("[") + 1).end()
  while text[at : at + 1] != "]":
    number, before = number + text.count("\n", before, at), at
    try:
      value, end = parse(text, at)
    except _BROKEN as error:
      yield number, BadRow("not JSON", f"{_reason(error)}; the rest of the list cannot be read")
      return
    try:
      _checked(text[at:end])
      yield number, _object(value)
    except ValueError as error:
      yield number, BadRow("not JSON", _reason(error))
    at = space.match(text, end).end()
    if text[at : at + 1] == ",":
      at = space.match(text, at + 1).end()
    elif text[at : at + 1] != "]":
      yield number, BadRow("not JSON", "expected , or ] after it; the rest cannot be read")
      return


def _checked(text):
  if not text.isascii() and _NOT_UTF8.search(text):
    raise ValueError("it is not UTF-8")
  return text


def _object(value):
  return value if isinstance(value, dict) else BadRow("not an object", f"it is {value!r:.60}")


def _reason(error):
  return "too deeply nested" if isinstance(error, RecursionError) else str(error)
