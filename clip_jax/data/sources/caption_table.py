"""Reads image files that a table lists with their captions."""

from collections import Counter
import contextlib
import os
import re
from typing import Any, Literal

from clip_jax.cli.formatting import printable
from clip_jax.cli.values import FilePath, checked
from clip_jax.data.captions import caption_texts
from clip_jax.data.column_names import AUTO, ORIGIN_FIELDS, image_column, shown, text_column
from clip_jax.data.decode import MAX_BYTES
from clip_jax.data.folder_walk import OUTSIDE, describe, examine, is_inside
from clip_jax.data.outcomes import Dropped, Taken
from clip_jax.data.selection import record_number
from clip_jax.data.table_rows import BadRow, Quotes, open_table
from clip_jax.data.untrusted import NotAFile, read_regular
from clip_jax.errors import UserError

FOLLOW = "set follow_links=True to read what links outside the folder point to"
_SKIP = 'or leave such rows out with CaptionTable(on_error="skip"), --on_error=skip in a command'
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
OnError = Literal["raise", "skip"]


@checked
class CaptionTable:
  """Source of the image files that a CSV, TSV, JSON lines or JSON table lists; picklable.

  A record is {"image": encoded bytes, "text": str or list of str, "key": path of the image as in
  the table, ...}, in the order of the table. Rows with the same image are merged into one record
  with several texts.

  Attributes:
    columns: names in the header; of JSON, the fields of the first row.
    image_name, text_name: the columns that are used.
    found: number of rows.
    items: number of rows of each record.
    left_out: the rows that are in no record.
    skipped: number of images that are not files, by reason; see `folder_walk`.
  """

  unit = "rows"

  def __init__(
    self,
    path: FilePath,
    image: str = AUTO,
    text: str = AUTO,
    image_root: FilePath | None = None,
    fields: tuple[str, ...] | None = (),
    delimiter: str | None = None,
    quotes: Quotes = "csv",
    on_error: OnError = "raise",
    language: str | None = None,
    check: bool = True,
    follow_links: bool = False,
  ):
    """Reads the table, and checks that the images exist.

    Args:
      path: the table: CSV, TSV, .jsonl or .json, in UTF-8; see `table_rows.open_table`.
      image: name of the column with the path of the image; "auto" for the first of the usual names,
        in `column_names.IMAGE`, that the table has.
      text: name of the column with the text or list of texts; "auto" likewise.
      image_root: folder that relative paths start from, and that no path may leave. None for the
        folder of the table; then paths may also be absolute or lead to other folders, so pass a
        folder for a table that you do not trust.
      fields: further columns to include in the records under their own names; None for those of
        `column_names.ORIGIN_FIELDS` that a row has. If several rows have the same image, the values
        of the first row are used.
      delimiter: the character between fields; None to guess it from the header.
      quotes: "csv", or "literal" if quotes are ordinary characters.
      on_error: "raise" for an error at the first row that cannot be used; "skip" to leave such rows
        out and count them in `left_out`.
      language: key of the caption to use if captions are objects such as {"en": "a dog"}.
      check: whether to check now that every image exists and every caption is text. If False,
        reading a record with a missing image raises FileNotFoundError.
      follow_links: whether links may lead out of `image_root`.

    Raises:
      UserError: the table or an image is missing, a column is missing or occurs twice, or a row is
        malformed.
    """
    self.path, self.language, self.on_error = os.path.abspath(path), language, on_error
    if not os.path.isfile(self.path):
      raise UserError(f"There is no table {path}.")
    confined = image_root is not None
    if image_root is not None and not os.path.isdir(image_root):
      raise UserError(f"There is no folder {image_root}, which image_root names.")
    self.image_root = os.path.abspath(image_root or os.path.dirname(self.path))
    self._confined = confined
    self._root = os.path.realpath(self.image_root) if confined and not follow_links else None
    self._checked = check
    self.skipped, self.found = Counter(), 0
    self.left_out: list[Dropped] = []
    self._table = open_table(self.path, delimiter, quotes)
    self.columns = self._table.columns
    if not self.columns:  # JSON without a single object: name what is wrong with the first row.
      self._refuse_all()
    self.image_name = image_column(self.columns, image, self.path)
    self.text_name = text_column(self.columns, text, self.path)
    self._read(fields)
    if check:
      self._check_present()

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, i: int) -> dict[str, Any]:
    [taken] = self.outcomes(i)
    record = taken.record
    texts, _ = caption_texts(record["text"], self.language)
    text = record["text"]
    text = text.get(self.language) if isinstance(text, dict) else text
    return record | {"text": texts if _is_list(text) else texts[0]}

  def outcomes(self, i: int) -> list[Taken]:
    """Returns record `i` with the text as it is in the table, which may not be a text."""
    i = record_number(i, len(self))
    path = os.path.join(self.image_root, self._keys[i])
    if self._root is not None and not self._checked and not is_inside(self._root, path):
      raise NotAFile(f"{path} is a link out of the folder.")
    image = read_regular(path, MAX_BYTES)
    record = {"image": image, "text": self._texts[i], "key": self._keys[i], **self._fields[i]}
    return [Taken(record, self.items[i])]

  def describe(self) -> str:
    """Returns one line on how the table was read: number of rows, columns, delimiter."""
    note = f"; {self._table.note}" if self._table.note else ""
    return (
      f"{self.path}: {self.found:,} rows, images from column {printable(self.image_name)!r}, "
      f"texts from {printable(self.text_name)!r}{note}."
    )

  def _refuse_all(self):
    for number, row in self._table:
      raise UserError(f"{self.path}, line {number}: {self._complaint(row)}")
    raise UserError(f"{self.path} has no rows.")

  def _read(self, fields):
    numbers: dict[str, int] = {}  # Record of each image.
    self._keys, self._texts, self._fields, self.items = [], [], [], []
    several = set()
    for line, row in self._table:
      self.found += 1
      try:
        key, text, further = self._parsed(row, fields)
      except _Refused as refused:
        if self.on_error == "raise":
          raise UserError(f"{self.path}, line {line}: {refused.message}") from refused
        self.left_out.append(Dropped(refused.reason))
        continue
      i = numbers.setdefault(key, len(self._keys))
      if i == len(self._keys):
        self._keys.append(key)
        self._texts.append(text)
        self._fields.append(further)
        self.items.append(1)
      else:
        if i not in several:
          self._texts[i] = list(_list(self._texts[i]))
          several.add(i)
        self._texts[i].extend(_list(text))
        self.items[i] += 1
    if not self.found:
      raise UserError(f"{self.path} has no rows.")

  def _parsed(self, row, fields):
    """Returns (key, text, further fields) of a row, or raises `_Refused`."""
    if isinstance(row, BadRow):
      raise _Refused(row.reason, self._complaint(row))
    for name in (self.image_name, self.text_name, *(fields or ())):
      if name not in row:  # Rows of JSON need not have the same fields.
        raise _Refused("field missing", f"it has no {name!r}, only {shown(row)}.")
    text = row[self.text_name]
    if self._checked:
      try:
        caption_texts(text, self.language)
      except Dropped as dropped:
        raise _Refused(
          dropped.reason,
          f"{self.text_name} is {text!r:.100}; expected a string or a list of strings. "
          f"Correct the row, {_SKIP}.",
        ) from dropped
    if fields is None:
      # The key is the path of the image.
      kept = {n: row[n] for n in ORIGIN_FIELDS if n != "key" and row.get(n) not in (None, "")}
    else:
      kept = {name: row[name] for name in fields}
    return self._key(row[self.image_name]), text, kept

  def _key(self, value):
    """Returns the normalised path of an image, or raises `_Refused`."""
    if not isinstance(value, str) or not value.strip():
      raise _Refused("no image path", f"{value!r:.100} is not a path{self._inside()}.")
    if _ADDRESS.match(value):
      raise _Refused(
        "image is a URL",
        f"{value!r:.100} is an address, and clip_jax does not download. Download the images first, "
        "for example with img2dataset.",
      )
    path = os.path.normpath(value)
    if self._confined and os.path.isabs(path) and path.startswith(self.image_root + os.sep):
      path = os.path.relpath(path, self.image_root)
    leaves = os.path.isabs(path) or path.split(os.sep)[0] == ".."
    if "\0" in path or path == "." or (self._confined and leaves):
      raise _Refused("path outside the folder", f"{value!r:.100} is not a path{self._inside()}.")
    return path

  def _inside(self):
    return f" inside the folder {self.image_root}" if self._confined else ""

  def _complaint(self, row):
    detail = f" ({row.detail})" if row.detail else ""
    ways = "Correct the row"
    if self._table.delimiter is not None and self._table.quotes == "csv":
      ways += ', set quotes="literal" if quotes are ordinary characters'
    return f"{row.reason}{detail}. {ways}, {_SKIP}."

  def _check_present(self):
    # Listing each folder is much faster than checking each file.
    listed, missing = {}, []
    for i, key in enumerate(self._keys):
      folder, name = os.path.split(key)
      if folder not in listed:
        listed[folder] = self._files(folder)
      reason = OUTSIDE if listed[folder] is None else listed[folder].get(name, "missing")
      if reason:
        missing.append(i)
        self.skipped.update([reason] if reason != "missing" else [])
    if not missing:
      return
    if self.on_error == "raise":
      keys = [self._keys[i] for i in missing]
      raise UserError(
        f"{len(missing):,} of the {len(self._keys):,} images listed in "
        f"{os.path.basename(self.path)} are missing in {self.image_root}: {shown(keys, 5)}. "
        f"{self._elsewhere(keys)}"
        + (f" ({describe(self.skipped)}; {FOLLOW})" if self.skipped else "")
      )
    self.left_out += [Dropped("no image", self.items[i]) for i in missing]
    gone = set(missing)
    for name in ("_keys", "_texts", "_fields", "items"):
      setattr(self, name, [x for i, x in enumerate(getattr(self, name)) if i not in gone])

  def _elsewhere(self, keys):
    """Says what to do about missing images, and where they are if that is easy to see."""
    folder = os.path.dirname(self.path)
    for root in (folder, os.path.dirname(folder), os.getcwd()):
      if root != self.image_root and all(os.path.isfile(os.path.join(root, k)) for k in keys[:20]):
        return f"They are in {root}: set image_root={root}."
    return "Remove their rows, add the images, or set image_root to the folder that they are in."

  def _files(self, folder):
    """Returns a reason not to read each file of a subfolder, or None; None if it is outside."""
    where = os.path.join(self.image_root, folder)
    if self._root is not None and not is_inside(self._root, where):
      return None
    found = {}
    with contextlib.suppress(OSError, ValueError), os.scandir(where) as there:
      for entry in there:
        reason, is_folder = examine(entry, self._root)
        if reason or not is_folder:
          found[entry.name] = reason
    return found


class _Refused(Exception):
  """A row that cannot be used, with the reason to count it by and a message."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason, self.message = reason, message


def _is_list(text):
  return isinstance(text, (list, tuple))


def _list(text):
  return text if _is_list(text) else [text]
