"""A folder of images, with captions in a table, or with one folder for each class."""

import csv
import difflib
import json
import os
from typing import Any

from clip_jax.data.selection import record_number
from clip_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TABLES = (".jsonl", ".csv", ".tsv")


class Folder:
  """Source of the image files that a table of captions names, or that lie in folders of classes.

  With a table, a record is {"image": encoded bytes, "text": str or list of str, "key": the image's
  path inside the folder, ...}, in the order of the table. Rows of the same image are one record
  with several texts. With folders of classes, it is {"image", "label": int, "key"}, by class and
  name.

  Attributes:
    classes: names of the labels, those of the folders; only with folders of classes.
  """

  def __init__(self, path: str, captions: str | None = "captions.jsonl", image: str = "image",
               text: str = "caption", fields: tuple[str, ...] = (), check: bool = True):
    """Reads the table, or lists the folders, and looks whether the images are there.

    Args:
      path: the folder.
      captions: the table inside it: JSON lines such as {"image": "a/1.jpg", "caption": "a dog"},
        where the caption may be a list, or CSV or TSV with a line of names. None for a folder of
        classes. Hugging Face's image folders are captions="metadata.jsonl", image="file_name".
      image: name of the entry or column that is the image's path inside the folder.
      text: name of the entry or column that is the text.
      fields: further ones, that records have under their own names, as the first row has them.
      check: whether to look for every image now. Otherwise one that is missing raises
        FileNotFoundError when it is read.

    Raises:
      UserError: no such folder or table, a damaged row, no such column, a path that leads out of
        the folder, images that are missing, or no image at all.
    """
    self.path = os.path.abspath(path)
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
    with open(os.path.join(self.path, self._keys[i]), "rb") as f:
      return {"image": f.read(), "key": self._keys[i], **self._rows[i]}

  def _read_table(self, table, image, text, fields):
    if not os.path.isfile(table):
      there = [n for n in sorted(os.listdir(self.path)) if n.endswith(_TABLES)]
      raise UserError(f"There is no table {table}; in the folder there are "
                      f"{', '.join(there) or 'no tables'}. Name one by captions, or set it to None "
                      "if there is a folder for each class.")
    rows = {}
    own = {image: "image", text: "text"}
    for line, row in _rows(table):
      for name in (image, text, *fields):
        if name not in row:
          close = difflib.get_close_matches(name, row, 1)
          raise UserError(f"{table}, line {line}, has no {name!r}; it has {', '.join(row)}."
                          + (f" Did you mean {close[0]!r}?" if close else
                             f" Rename the column, or name it: {own[name]}=NAME of the source, or "
                             f"--{own[name]}=NAME of prepare." if name in own else ""))
      texts = row[text]
      if not isinstance(texts, (str, list)):
        raise UserError(f"{table}, line {line}: {text} is {texts!r}, and is wanted as a string or "
                        "a list of strings.")
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
    classes = sorted(e.name for e in os.scandir(self.path) if e.is_dir() and e.name[0] != ".")
    found = [(os.path.join(name, file), {"label": label}) for label, name in enumerate(classes)
             for file in sorted(os.listdir(os.path.join(self.path, name)))
             if file.lower().endswith(IMAGES)]
    if not found:
      raise UserError(
          f"{self.path} has no images in folders of its own; expected CLASS/NAME with one of "
          f"{', '.join(IMAGES)}. If a table names the images, set captions to its name.")
    self.classes = tuple(classes)
    self._keys, self._rows = map(list, zip(*found))

  def _check_present(self, captions):
    # A listing for each folder is much faster than a question for each file.
    listed = {}
    for key in self._keys:
      folder = os.path.dirname(key)
      if folder not in listed:
        try:
          listed[folder] = set(os.listdir(os.path.join(self.path, folder)))
        except OSError:
          listed[folder] = set()
    missing = [k for k in self._keys if os.path.basename(k) not in listed[os.path.dirname(k)]]
    if missing:
      raise UserError(
          f"{len(missing):,} of the {len(self._keys):,} images that {captions} names are not in "
          f"{self.path}: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Remove "
          "their rows, or put the images there.")


def _rows(table):
  """(number of the line, row as a dict) of a table."""
  number = 1
  try:
    with open(table, encoding="utf-8-sig", newline="") as f:
      if table.endswith(".jsonl"):
        for number, line in enumerate(f, 1):
          if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
              raise ValueError(f"{row!r} is not an object")
            yield number, row
        return
      delimiter = "\t" if table.endswith(".tsv") else ","
      rows = csv.DictReader(f, delimiter=delimiter, restval="", restkey="(too many)")
      for row in rows:
        number = rows.line_num
        yield number, row
  except UnicodeDecodeError as error:
    raise UserError(f"{table} is not UTF-8: {error}. Write it again as UTF-8.") from error
  except (ValueError, csv.Error) as error:
    raise UserError(f"{table}, line {number}: {error}. Expected one JSON object a line in a .jsonl "
                    "file, or a line of names and then rows in a .csv or .tsv file.") from error


def _inside(path, where):
  """The normal form of a path inside the folder; a table may come from anybody."""
  normal = os.path.normpath(str(path))
  if not path or os.path.isabs(normal) or normal.split(os.sep)[0] in ("..", "."):
    raise UserError(f"{where}: {path!r} is not the path of a file inside the folder.")
  return normal


def _list(texts):
  return [texts] if isinstance(texts, str) else texts
