"""Reads a folder of images with a caption table, or with one subfolder per class."""

from collections import Counter
from collections.abc import Sequence
import os
from typing import Any

from clip_jax.cli.values import FilePath, checked
from clip_jax.data.column_names import AUTO, shown
from clip_jax.data.decode import ENDINGS as IMAGES, MAX_BYTES
from clip_jax.data.folder_walk import describe, survey, warn_skipped
from clip_jax.data.outcomes import Dropped, NotAskedFor, kind_of_file
from clip_jax.data.selection import record_number
from clip_jax.data.sources.caption_table import FOLLOW, CaptionTable
from clip_jax.data.table_rows import ENDINGS as TABLES
from clip_jax.data.untrusted import read_regular
from clip_jax.errors import UserError


@checked
class Folder:
  """Source of image files that are listed in a caption table or sorted into class folders.

  With a table, a record is {"image": encoded bytes, "text": str or list of str, "key": path of the
  image relative to the folder, ...}, in the order of the table. Rows with the same image are merged
  into one record with several texts. With class folders, a record is {"image": encoded bytes,
  "label": int, "key": str}, sorted by class and path.

  Attributes:
    classes: class names by label, which are the names of the subfolders; only with class folders.
    labels: label of each record; only with class folders.
    found: number of files in class folders, or rows of the table.
    items: number of files or rows of each record.
    left_out: the files or rows that are in no record, by reason.
    skipped: number of files and class folders that were skipped, by reason; see `folder_walk`.
  """

  def __init__(
    self,
    path: FilePath,
    captions: str | None = "captions.jsonl",
    image: str = AUTO,
    text: str = AUTO,
    fields: tuple[str, ...] = (),
    check: bool = True,
    follow_links: bool = False,
  ):
    """Reads the table or lists the class folders, and checks that the images exist.

    Args:
      path: the folder.
      captions: name of the table inside the folder: JSON lines such as {"image": "a/1.jpg",
        "caption": "a dog"}, where the caption may be a list, or CSV or TSV with a header row. None
        for class folders, which may have subfolders. `CaptionTable` has more options.
      image: name of the column with the path of the image relative to the folder; "auto" for the
        first of the usual names, in `column_names.IMAGE`, that the table has.
      text: name of the column with the text; "auto" likewise.
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
    self.skipped: Counter[str] = Counter()
    if not os.path.isdir(self.path):
      raise UserError(f"There is no folder {path}.")
    self._table: CaptionTable | None = None
    self.left_out: Sequence[Dropped | NotAskedFor] = ()
    if captions is None:
      self._read_classes(follow_links)
      return
    file = os.path.join(self.path, captions)
    if not os.path.isfile(file):
      tables = [n for n in sorted(os.listdir(self.path)) if n.lower().endswith(TABLES)]
      raise UserError(
        f"There is no table {file}; the folder has "
        f"{shown(tables, 5) or 'no tables'}. Set captions to the name of a table, "
        "or to None if there is one subfolder per class."
      )
    self._table = CaptionTable(
      file,
      image=image,
      text=text,
      image_root=self.path,
      fields=tuple(fields),
      check=check,
      follow_links=follow_links,
    )
    self.skipped = self._table.skipped
    self.unit, self.found = self._table.unit, self._table.found
    self.items, self.left_out = self._table.items, self._table.left_out

  def __len__(self) -> int:
    return len(self._keys) if self._table is None else len(self._table)

  def __getitem__(self, i: int) -> dict[str, Any]:
    if self._table is not None:
      return self._table[i]
    i = record_number(i, len(self))
    image = read_regular(os.path.join(self.path, self._keys[i]), MAX_BYTES)
    return {"image": image, "key": self._keys[i], "label": self.labels[i]}

  def _read_classes(self, follow_links):
    seen = survey(self.path, follow_links)
    self.skipped, self.unit = seen.skipped, "files"
    self.found = seen.found
    warn_skipped(self.path, self.skipped, f"Note: {FOLLOW}.")
    images, other = [], Counter()
    for file in seen.files:
      if not file.lower().endswith(IMAGES):
        other[kind_of_file(file)] += 1
      elif os.sep not in file:
        other["images outside the class folders"] += 1
      else:
        images.append(file)
    self.left_out = seen.outcomes() + [NotAskedFor(kind, n) for kind, n in other.items()]
    if not images:
      raise UserError(
        f"{self.path} has no images in subfolders; expected files CLASS/NAME ending in one of "
        f"{', '.join(IMAGES)}. If a table lists the images, set captions to its name."
        + (f" ({describe(self.skipped)}; {FOLLOW})" if self.skipped else "")
      )
    self.classes = tuple(seen.top_folders)
    labels = {name: label for label, name in enumerate(self.classes)}
    self._keys = sorted(images, key=lambda file: (labels[file.split(os.sep)[0]], file))
    self.labels = tuple(labels[key.split(os.sep)[0]] for key in self._keys)
    self.items = [1] * len(self._keys)
