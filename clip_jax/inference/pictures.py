"""The pictures that are searched: the image files of a folder, or prepared records."""

from collections import Counter
from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_jax.data.decode import MAX_BYTES, UnreadableImage
from clip_jax.data.folder_walk import describe, walk
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.folder import IMAGES
from clip_jax.data.sources.icon_records import IconRecords
from clip_jax.data.untrusted import read_regular
from clip_jax.errors import UserError

_CAPTION = 2000  # Most bytes that are read of a caption.


class Pictures(Protocol):
  """Pictures that can be embedded and shown.

  Attributes:
    folder: where they are, an absolute path.
    stamps: two numbers by the name of each picture, which change if the picture does.
    skipped: number of pictures that are left out, by reason.
  """

  @property
  def folder(self) -> Path:
    """Returns where they are."""
    ...

  @property
  def stamps(self) -> Mapping[str, tuple[int, int]]:
    """Returns the stamps."""
    ...

  @property
  def skipped(self) -> Mapping[str, int]:
    """Returns the numbers of pictures that are left out."""
    ...

  def read(self, name: str) -> bytes | np.ndarray:
    """Returns an encoded image, or uint8 [H, W, 3].

    Raises:
      OSError, UnreadableImage: it cannot be read.
    """
    ...

  def title(self, name: str) -> str:
    """Returns what to call a picture in a list of results."""
    ...

  def caption(self, name: str) -> str:
    """Returns the text of a picture in one line, "" if it has none."""
    ...


def open_pictures(folder: Path | str) -> Pictures:
  """Opens a folder of images or of prepared records.

  Raises:
    UserError: there is no such folder, or it has no images and no records.
  """
  folder = Path(folder).absolute()
  if not folder.is_dir():
    raise UserError(f"There is no folder {folder}. Set --images to a folder of images.")
  if any(folder.glob("*.array_record")):
    return PictureRecords(folder)
  found = PictureFolder(folder)
  if not found.stamps:
    raise UserError(
      f"{folder} and its subfolders have no images; looked for {', '.join(IMAGES)}."
      + (f" ({describe(found.skipped)})" if found.skipped else "")
    )
  return found


class PictureFolder:
  """The image files of a folder; see `Pictures`. Names are paths relative to the folder."""

  def __init__(self, folder: Path | str):
    """Lists the images, except for hidden files and folders."""
    self.folder = Path(folder).absolute()
    names, skipped = walk(str(self.folder), IMAGES)
    self.skipped: Counter = skipped
    self.stamps: dict[str, tuple[int, int]] = {}
    for name in names:
      with contextlib.suppress(OSError):  # Deleted since it was listed.
        stat = (self.folder / name).stat()
        self.stamps[name] = (stat.st_size, stat.st_mtime_ns)

  def read(self, name: str) -> bytes:
    """Returns the content of the file."""
    return read_regular(self.folder / name, MAX_BYTES)

  def title(self, name: str) -> str:
    """Returns the path relative to the folder."""
    return name

  def caption(self, name: str) -> str:
    """Returns the text of the file of the same name that ends in .txt."""
    path = self.folder / (os.path.splitext(name)[0] + ".txt")
    if path.is_symlink():  # It may lead out of the folder.
      return ""
    try:
      return _line(read_regular(path, _CAPTION).decode("utf-8", "replace"))
    except (OSError, UnreadableImage):
      return ""


class PictureRecords:
  """The records that `prepare` wrote to a folder; see `Pictures`. Names are their numbers."""

  def __init__(self, folder: Path):
    """Opens the records; icons are those of all splits."""
    self.folder = folder
    records = ArrayRecord(folder)
    icons = (folder / "icons.npz").is_file()
    self._records: Any = IconRecords(folder, "all", "name") if icons else records
    self.skipped: Counter = Counter()
    stats = [os.stat(file) for file in records.files]
    stamp = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    self.stamps = {str(i): stamp for i in range(len(self._records))}

  def read(self, name: str) -> bytes | np.ndarray:
    """Returns the image of the record."""
    image = self._records[int(name)].get("image")
    if not isinstance(image, (bytes, np.ndarray)):
      raise UnreadableImage(f"record {name} has no image")
    return image

  def title(self, name: str) -> str:
    """Returns the record's "key", or else its number."""
    return str(self._records[int(name)].get("key") or f"record {name}")

  def caption(self, name: str) -> str:
    """Returns the text of the record, the first if there are several."""
    text = self._records[int(name)].get("text") or ""
    return _line(text if isinstance(text, str) else str(text[0]))[:_CAPTION]


def _line(text):
  return " ".join(text.split())
