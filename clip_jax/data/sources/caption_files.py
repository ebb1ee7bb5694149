"""Reads a folder of images with captions in files of the same name: NAME.jpg and NAME.txt."""

from collections import Counter
import os
from typing import Any

from clip_jax.cli.values import FilePath, checked
from clip_jax.data.captions import caption_texts
from clip_jax.data.decode import MAX_BYTES
from clip_jax.data.folder_walk import describe, survey, warn_skipped
from clip_jax.data.outcomes import Dropped, NotAskedFor, Taken, kind_of_file
from clip_jax.data.sample_parts import SampleParts
from clip_jax.data.selection import record_number
from clip_jax.data.untrusted import MAX_JSON, read_regular
from clip_jax.errors import UserError


@checked
class CaptionFiles:
  """Source of the images in a folder and its subfolders, with captions in files next to them.

  The caption of NAME.jpg is in NAME.txt, NAME.text or NAME.caption, or is the "caption" of
  NAME.json. A record is {"image": encoded bytes, "text": str or list of str, "key": path of the
  image relative to the folder}, sorted by path. Hidden files are left out.

  Attributes:
    found: number of files.
    items: number of files of each record.
    left_out: the files that are in no record, by reason.
    skipped: number of files that were skipped, by reason; see `folder_walk`.
  """

  unit = "files"

  def __init__(
    self,
    path: FilePath,
    image: str | None = None,
    text: str | None = None,
    fields: tuple[str, ...] = (),
    language: str | None = None,
    check: bool = True,
    follow_links: bool = False,
  ):
    """Lists the folder.

    Args:
      path: the folder.
      image: endings of the images, in the order of preference, such as "png;jpg"; None for all
        formats. If several images have the same name, the others are left out.
      text: endings of the captions, or names of entries of NAME.json; None for txt, text, caption.
      fields: further entries of NAME.json to include in the records.
      language: key of the caption to use if captions are objects such as {"en": "a dog"}.
      check: whether every image needs a caption; if False, reading one without a text fails.
      follow_links: whether to read files that links outside the folder point to.

    Raises:
      UserError: the folder does not exist or has no image with a caption, or with `check` an image
        has no caption.
    """
    self.path, self.language = os.path.abspath(path), language
    if not os.path.isdir(self.path):
      raise UserError(f"There is no folder {path}.")
    self._parts = SampleParts.of(image, text, tuple(fields))
    seen = survey(self.path, follow_links)
    self.skipped, self.found = seen.skipped, seen.found
    warn_skipped(self.path, self.skipped)
    self.left_out: list[Dropped | NotAskedFor] = seen.outcomes()
    groups: dict[str, dict[str, str]] = {}  # Files of each name, by ending.
    other = Counter()
    for file in seen.files:
      stem, ending = os.path.splitext(file)
      ending = ending[1:].lower()
      if self._parts.wants(ending) and ending not in groups.get(stem, ()):
        groups.setdefault(stem, {})[ending] = file
      else:
        other[kind_of_file(file)] += 1
    self._keys, self._files, self.items, alone = [], [], [], []
    for files in groups.values():
      images = [ending for ending in self._parts.images if ending in files]
      if not images:
        other.update(map(kind_of_file, files.values()))  # Such as a LICENSE.txt.
        continue
      other.update(kind_of_file(files.pop(ending)) for ending in images[1:])
      if len(files) == 1:
        alone.append(files[images[0]])
      self._keys.append(files[images[0]])
      self._files.append(files)
      self.items.append(len(files))
    self.left_out += [NotAskedFor(kind, n) for kind, n in other.items()]
    if len(alone) == len(self._keys):
      raise UserError(
        f"{self.path} has no images with captions in files of the same name, such as 1.jpg and "
        f"1.txt, only {len(alone):,} images without."
        + (f" ({describe(self.skipped)})" if self.skipped else "")
      )
    if check and alone:
      raise UserError(
        f"{len(alone):,} of the {len(self._keys):,} images in {self.path} have no caption, for "
        f"example {alone[0]}. Add {os.path.splitext(alone[0])[0]}.txt, or remove them."
      )

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self._read(i)[0]
    texts, _ = caption_texts(record.get("text"), self.language)
    text = record["text"].get(self.language) if isinstance(record["text"], dict) else record["text"]
    return record | {"text": texts if isinstance(text, list) else texts[0]}

  def outcomes(self, i: int) -> list[Taken | NotAskedFor]:
    """Returns record `i` with the text as it is in the file, and the files that are not used."""
    record, used, changes = self._read(i)
    left = [kind_of_file(file) for ending, file in self._files[i].items() if ending not in used]
    return [Taken(record, len(used), tuple(changes)), *map(NotAskedFor, left)]

  def _read(self, i):
    i = record_number(i, len(self))
    content = {
      ending: read_regular(
        os.path.join(self.path, file), MAX_BYTES if ending in self._parts.images else MAX_JSON
      )
      for ending, file in self._files[i].items()
    }
    record, used, changes = self._parts.assemble(content)
    return record | {"key": self._keys[i]}, used, changes
