"""Puts a sample together from files that share a name: NAME.jpg, NAME.txt, NAME.json."""

from collections.abc import Mapping
import dataclasses
import json
import re
from typing import Any

from clip_jax.data.decode import ENDINGS
from clip_jax.errors import UserError

_TEXTS = ("txt", "text", "caption")
_MOST_JSON = 2**20  # Bytes.


@dataclasses.dataclass(frozen=True)
class SampleParts:
  """Endings of the files that hold the parts of a sample.

  Attributes:
    images: endings of images, in the order of preference, without a dot and in lower case.
    texts: endings of texts or names of entries of the .json, in the order of preference.
    fields: further entries of the .json to keep.
  """

  images: tuple[str, ...]
  texts: tuple[str, ...]
  fields: tuple[str, ...] = ()

  @classmethod
  def of(cls, image: str | None, text: str | None, fields: tuple[str, ...]) -> "SampleParts":
    """Parses lists such as "jpg;png"; None for all image formats and the usual texts.

    Raises:
      UserError: a list is empty.
    """
    images = _listed("image", image, tuple(ending.lstrip(".") for ending in ENDINGS))
    # "caption" in the list is also the entry of the .json that is used without a text file.
    return cls(tuple(map(str.lower, images)), _listed("text", text, _TEXTS), fields)

  def wants(self, ending: str) -> bool:
    """Whether a file with this ending can be part of a sample."""
    return ending in self.images or ending in self.texts or ending == "json"

  def assemble(self, files: Mapping[str, bytes]) -> tuple[dict[str, Any], set[str], list[str]]:
    """Returns (raw record, endings of the files that it consists of, changes to report).

    Args:
      files: content of the files of one sample, by ending.
    """
    record, used, changes = {}, set(), []
    image = next((ending for ending in self.images if ending in files), None)
    if image is not None:
      record["image"] = files[image]
      used.add(image)
    notes: dict[str, Any] = {}
    if "json" in files and "json" not in used:
      used.add("json")
      try:
        notes = _object(files["json"])
      except (ValueError, RecursionError):
        changes.append("unreadable JSON")
    record |= {name: notes[name] for name in self.fields if notes.get(name) is not None}
    for name in self.texts:
      if name in files and name != "json":
        record["text"] = files[name]
        used.add(name)
        break
      if name in notes:
        record["text"] = notes[name]
        break
    return record, used, changes


def _object(content):
  if len(content) > _MOST_JSON:
    raise ValueError("too large")
  notes = json.loads(content)
  if not isinstance(notes, dict):
    raise ValueError("not an object")
  return notes


def _listed(name, given, default):
  if given is None:
    return default
  listed = tuple(part.strip().lstrip(".") for part in re.split(r"[;,]", given))
  if not all(listed):
    raise UserError(f"{name} is {given!r}; expected endings or names, such as jpg;png.")
  return listed
