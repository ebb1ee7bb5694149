"""Reads a folder of images with a caption table, or with one subfolder per class."""

from collections import Counter
import contextlib
import csv
import json
import os
from typing import Any

from clip_jax.cli.formatting import printable
from clip_jax.cli.suggest import did_you_mean
from clip_jax.cli.values import FilePath, checked
from clip_jax.data.decode import MAX_BYTES
from clip_jax.data.folder_walk import OUTSIDE, describe, entries, examine, is_inside, warn_skipped
from clip_jax.data.selection import record_number
from clip_jax.data.untrusted import NotAFile, read_regular, text_lines
from clip_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_FOLLOW = "set follow_links=True to read what links outside the folder point to"
_TABLES = (".jsonl", ".csv", ".tsv")


@checked
class Folder:
  """Source of image files that are listed in a caption table or sorted into class folders.

  With a table, a record is {"image": encoded bytes, "text": str or list of str, "key": path of the
  image relative to the folder, ...}, in the order of the table. Rows with the same image are merged
  into one record with several texts. With class folders, a record is {"image": encoded bytes,
  "label": int, "key": str}, sorted by class and file name.

  Attributes:
    classes: class names by label, which are the names of the subfolders; only with class folders.
    labels: label of each record; only with class folders.
    skipped: number of files and class folders that were skipped, by reason; see `folder_walk`.
  """

  def __init__(
    self,
    path: FilePath,
    captions: str | None = "captions.jsonl",
    image: str = "image",
    text: str = "caption",
    fields: tuple[str, ...] = (),
    check: bool = True,
    follow_links: bool = False,
  ):
    """Reads the table or lists the class folders, and checks that the images exist.

    Args:
      path: the folder.
      captions: name of the table inside the folder: JSON lines such as {"image": "a/1.jpg",
        "caption": "a dog"}, where the caption may be a list, or CSV or TSV with a header row. None
        for class folders. For a Hugging Face image folder set captions="metadata.jsonl" and
        image="file_name".
      image: name of the column with the path of the image relative to the folder.
      text: name of the column with the text.
      fields: further columns to include in the records under their own names. If several rows have
        the same image, the values of the first row are used.
      check: whether to check now that every image exists. If False, reading a record with a missing
        image raises FileNotFoundError.
      follow_links: whether to read files that links outside the folder point to. A folder from
        others may have links to private files.

    Raises:
      UserError: the folder, the table, a column or an image is missing, a row is malformed, a path
        points outside the folder, or there are no images.
    """
    self.path = os.path.abspath(path)
    self._root = None if follow_links else os.path.realpath(path)
    self._unchecked = captions is not None and not check and not follow_links
    self.skipped = Counter()
    if not os.path.isdir(self.path):
      raise UserError(f"There is no folder {path}.")
    if captions is None:
      self._read_classes()
    else:
      self._read_table(os.path.join(self.path, captions), image, text, tuple(fields))
      if check:
        self._check_present(captions)

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    path = os.path.join(self.path, self._keys[i])
    if self._unchecked and not is_inside(self._root, path):
      raise NotAFile(f"{path} is a link out of the folder.")
    return {"image": read_regular(path, MAX_BYTES), "key": self._keys[i], **self._rows[i]}

  def _read_table(self, table, image, text, fields):
    if not os.path.isfile(table):
      tables = [n for n in sorted(os.listdir(self.path)) if n.endswith(_TABLES)]
      raise UserError(
        f"There is no table {table}; the folder has "
        f"{_first(tables) or 'no tables'}. Set captions to the name of a table, "
        "or to None if there is one subfolder per class."
      )
    rows = {}
    own = {image: "image", text: "text"}
    for line, row in _rows(table):
      for name in (image, text, *fields):
        if name not in row:
          near = did_you_mean(name, row)
          if not near and name in own:
            near = (
              f" Rename the column, or pass its name as {own[name]}=NAME to the source or "
              f"--{own[name]}=NAME to prepare."
            )
          raise UserError(f"{table}, line {line} has no {name!r}, only {_first(row, 20)}.{near}")
      texts = row[text]
      if not (isinstance(texts, str) or _are_texts(texts)):
        raise UserError(
          f"{table}, line {line}: {text} is {texts!r:.100}; expected a string or a list of strings."
        )
      key = _inside(row[image], f"{table}, line {line}")
      if key in rows:
        before = rows[key]["text"]
        rows[key]["text"] = _list(before) + _list(texts)
      else:
        rows[key] = {"text": texts, **{name: row[name] for name in fields}}
    if not rows:
      raise UserError(f"{table} has no rows.")
    self._keys, self._rows = list(rows), list(rows.values())

  def _read_classes(self):
    folders = entries(self.path, self._root, self.skipped, folders=True)
    classes = [entry.name for entry in folders]
    found = [
      (os.path.join(name, entry.name), {"label": label})
      for label, name in enumerate(classes)
      for entry in entries(os.path.join(self.path, name), self._root, self.skipped, suffixes=IMAGES)
    ]
    warn_skipped(self.path, self.skipped, f"Note: {_FOLLOW}.")
    if not found:
      raise UserError(
        f"{self.path} has no images in subfolders; expected files CLASS/NAME ending in one of "
        f"{', '.join(IMAGES)}. If a table lists the images, set captions to its name."
        + (f" ({describe(self.skipped)}; {_FOLLOW})" if self.skipped else "")
      )
    self.classes = tuple(classes)
    self._keys, self._rows = map(list, zip(*found))
    self.labels = tuple(row["label"] for row in self._rows)

  def _check_present(self, captions):
    # Listing each folder is much faster than checking each file.
    listed, missing = {}, []
    for key in self._keys:
      folder, name = os.path.split(key)
      if folder not in listed:
        listed[folder] = self._files(folder)
      reason = OUTSIDE if listed[folder] is None else listed[folder].get(name, "missing")
      if reason:
        missing.append(key)
        self.skipped.update([reason] if reason != "missing" else [])
    if missing:
      raise UserError(
        f"{len(missing):,} of the {len(self._keys):,} images listed in {captions} are missing in "
        f"{self.path}: {_first(missing)}. Remove their rows, or add the images."
        + (f" ({describe(self.skipped)}; {_FOLLOW})" if self.skipped else "")
      )

  def _files(self, folder):
    """Returns a reason not to read each file of a subfolder, or None; None if it is outside."""
    where = os.path.join(self.path, folder)
    if self._root is not None and not is_inside(self._root, where):
      return None
    found = {}
    with contextlib.suppress(OSError, ValueError), os.scandir(where) as there:
      for entry in there:
        reason, is_folder = examine(entry, self._root)
        if reason or not is_folder:
          found[entry.name] = reason
    return found


def _rows(table):
  """Yields (line number, row as a dict) for each row of a table."""
  number = 1
  try:
    with open(table, encoding="utf-8-sig", newline="") as f:
      if table.endswith(".jsonl"):
        for number, line in enumerate(text_lines(f), 1):
          if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
              raise ValueError(f"{row!r:.100} is not an object")
            yield number, row
        return
      delimiter = "\t" if table.endswith(".tsv") else ","
      rows = csv.DictReader(text_lines(f), delimiter=delimiter, restval="", restkey="(too many)")
      for row in rows:
        number = rows.line_num
        yield number, row
  except UnicodeDecodeError as error:
    raise UserError(f"{table} is not UTF-8: {error}. Convert it to UTF-8.") from error
  except (ValueError, RecursionError, csv.Error) as error:
    raise UserError(
      f"{table}, line {number}: {error}. Expected one JSON object per line in a "
      ".jsonl file, or rows under a header row in a .csv or .tsv file."
    ) from error


def _inside(path, where):
  """Returns the normalised path; rejects paths outside the folder, as tables are untrusted."""
  normal = os.path.normpath(str(path))
  leaves = os.path.isabs(normal) or normal.split(os.sep)[0] in ("..", ".")
  if not path or leaves or "\0" in normal:
    raise UserError(f"{where}: {path!r:.100} is not a path inside the folder.")
  return normal


def _are_texts(value):
  return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _first(names, most=5):
  """Lists the first names for a message; anyone may have chosen them."""
  shown = ", ".join(printable(str(name))[:200] for name in list(names)[:most])
  return shown + (", ..." if len(names) > most else "")


def _list(texts):
  return [texts] if isinstance(texts, str) else texts
