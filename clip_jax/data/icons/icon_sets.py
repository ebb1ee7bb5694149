"""Reads sets of icons in Iconify's JSON format."""

from collections import Counter
from collections.abc import Iterable
import dataclasses
import os
from pathlib import Path
from typing import Any

from clip_jax.cli.values import check_fields
from clip_jax.data.icons.icon_names import Naming
from clip_jax.data.untrusted import parse_json, read_regular
from clip_jax.errors import UserError

_MOST_BYTES = 2**28  # The largest set has 104 MB.
# SPDX identifiers of licences that allow any use, given the attribution that they ask for.
PERMISSIVE = (
  "MIT",
  "Apache-2.0",
  "BSD-3-Clause",
  "CC-BY-3.0",
  "CC-BY-4.0",
  "CC0-1.0",
  "ISC",
  "OFL-1.1",
  "Unlicense",
)
_PAIR = dict(title=str, spdx=str, url=str, name=str)
_SET: dict[str, Any] = {"prefix": str, "icons": dict, "aliases": dict, "info": dict}


@dataclasses.dataclass(frozen=True)
class IconSet:
  """Attribution of a set.

  Attributes:
    prefix: its short name.
    name: its title.
    author, url: who drew it, and where it is published.
    licence: SPDX identifier, or title if it has none.
    file: path of its JSON file.
  """

  prefix: str
  name: str
  author: str
  url: str
  licence: str
  file: str


@dataclasses.dataclass(frozen=True)
class Icon:
  """One visible drawing.

  Attributes:
    set: number of its set.
    name: its name in the set's JSON file.
    words: what is drawn.
    style: how it is drawn, words such as "outline".
    aliases: other words for what is drawn, without those of `words`.
    categories: categories that the set sorts it into.
  """

  set: int
  name: str
  words: str
  style: tuple[str, ...]
  aliases: tuple[str, ...]
  categories: tuple[str, ...]


def set_files(path: str | os.PathLike) -> list[str]:
  """Lists the JSON files of sets in a folder: `json/` of @iconify/json, or @iconify-json packages.

  Raises:
    UserError: there is no such folder, or it has no sets.
  """
  folder = Path(path)
  if folder.is_file():
    return [str(folder)]
  if not folder.is_dir():
    raise UserError(f"There is no folder {path}. {_GET}")
  files = sorted(folder.glob("json/*.json")) or sorted(folder.glob("**/icons.json"))
  if not files:
    other = {"collections", "package", "composer", "info", "chars", "metadata", "manifest"}
    files = sorted(file for file in folder.glob("*.json") if file.stem not in other)
  if not files:
    raise UserError(f"{path} has no sets of icons. {_GET}")
  return [str(file) for file in files]


_GET = (
  "Expected a folder of Iconify JSON files, for example the result of npm pack @iconify/json and "
  "tar -xf iconify-json-*.tgz."
)


def read_set(file: str) -> dict[str, Any]:
  """Returns the content of a set's JSON file, with the `info` of the file next to it if need be.

  Raises:
    UserError: it is not such a file.
  """
  try:
    content = parse_json(read_regular(file, _MOST_BYTES), file, most=_MOST_BYTES)
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error}") from error
  check_fields(content, _SET, file)
  if not {"prefix", "icons"} <= content.keys():
    raise UserError(f"{file} is not a set of icons: it has no prefix or no icons. {_GET}")
  info = Path(file).with_name("info.json")
  if "info" not in content and info.is_file():
    content["info"] = parse_json(read_regular(info, _MOST_BYTES), str(info))
  return content


def describe_set(content: dict[str, Any], file: str) -> IconSet:
  """Returns the attribution of a set."""
  info = content.get("info", {})
  author, licence = info.get("author", {}), info.get("license", {})
  check_fields(author, _PAIR, f"{file}: author")
  check_fields(licence, _PAIR, f"{file}: license")
  return IconSet(
    content["prefix"],
    info.get("name", content["prefix"]),
    author.get("name", "unknown"),
    author.get("url", ""),
    licence.get("spdx") or licence.get("title") or "unknown",
    file,
  )


def visible_icons(content: dict[str, Any], number: int) -> list[Icon]:
  """Lists the drawings of a set in the order of the file, without hidden ones.

  An alias that turns or mirrors a drawing is a drawing of its own; the others are further names.
  """
  icons, aliases = content["icons"], content.get("aliases", {})
  for name, one in (*icons.items(), *aliases.items()):
    if not isinstance(one, dict):
      raise UserError(f"Icon {name} of the set {content['prefix']} is {one!r:.60}, not an object.")
  shown = [name for name, icon in icons.items() if not icon.get("hidden")]
  listed = lambda field: [key for key in content.get(field) or {} if key]
  naming = Naming(shown, listed("suffixes"), listed("prefixes"))
  categories: dict[str, list[str]] = {}
  for category, members in (content.get("categories") or {}).items():
    for name in members:
      categories.setdefault(name, []).append(category)
  others: dict[str, list[str]] = {}
  turned = []
  for name, alias in aliases.items():
    if alias.get("hidden"):
      continue
    found = resolve(content, name)
    if found is None:
      continue
    root, icon = found
    if icon.get("rotate", 0) % 4 or icon.get("hFlip") or icon.get("vFlip"):
      turned.append(name)
    else:
      others.setdefault(root, []).append(name)
  drawings = []
  for name in (*shown, *turned):
    words, style = naming.split(name)
    more = dict.fromkeys(naming.split(other)[0] for other in others.get(name, ()))
    more.pop(words, None)
    drawings.append(Icon(number, name, words, style, tuple(more), tuple(categories.get(name, ()))))
  return drawings


def resolve(content: dict[str, Any], name: str) -> tuple[str, dict[str, Any]] | None:
  """Follows aliases to a drawing, adding up their turns and mirrorings.

  Returns:
    Name of the drawing and its properties, body, left, top, width, height, rotate, hFlip and vFlip;
    None if an alias leads nowhere.
  """
  icons, aliases = content["icons"], content.get("aliases", {})
  changes = []
  while name not in icons:
    if name not in aliases or len(changes) > len(aliases):
      return None
    changes.append(aliases[name])
    name = aliases[name].get("parent")
  defaults = {key: content[key] for key in ("left", "top", "width", "height") if key in content}
  icon = {"left": 0, "top": 0, "width": 16, "height": 16} | defaults | icons[name]
  for change in reversed(changes):
    for key, value in change.items():
      if key == "rotate":
        icon[key] = (icon.get(key, 0) + value) % 4
      elif key in ("hFlip", "vFlip"):
        icon[key] = bool(icon.get(key)) != bool(value)
      elif key not in ("parent", "hidden"):
        icon[key] = value
  return name, icon


def licence_filter(licences: str | Iterable[str]) -> frozenset[str] | None:
  """Returns the accepted SPDX identifiers, None for all.

  Args:
    licences: "permissive", "all", or identifiers, separated by commas if in one string.
  """
  if licences == "all":
    return None
  if licences == "permissive":
    return frozenset(PERMISSIVE)
  names = licences.split(",") if isinstance(licences, str) else licences
  return frozenset(name.strip() for name in names)


def licence_counts(sets: list[IconSet], icons: list[Icon]) -> Counter:
  """Counts drawings by licence."""
  return Counter(sets[icon.set].licence for icon in icons)
