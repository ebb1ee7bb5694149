"""Icons of the npm packages @iconify/json and @iconify-json/*: SVG drawings with names."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Annotated, Any, Literal

import numpy as np

from clip_jax.cli.values import FilePath, Fraction, Range, Seed, checked
from clip_jax.data.icons.icon_captions import captions
from clip_jax.data.icons.icon_drawing import (
  BrokenDrawing,
  decode_drawing,
  draw,
  paint,
  random_colours,
  svg,
)
from clip_jax.data.icons.icon_sets import (
  Icon,
  IconSet,
  describe_set,
  licence_counts,
  licence_filter,
  read_set,
  resolve,
  set_files,
  visible_icons,
)
from clip_jax.data.outcomes import NotAskedFor
from clip_jax.data.selection import record_number
from clip_jax.errors import UserError

Caption = Literal["captions", "names", "name"]


@checked
class Iconify:
  """Source of the icons in a folder of Iconify JSON files, drawn when they are read.

  The folder is that of the package @iconify/json, which has all sets, or holds one or several
  packages @iconify-json/SET. Records are in the order of the sets' names and then of the files.

  A record is {"image": PNG bytes, or uint8 [S, S, 3] if it is painted in random colours, "text":
  str or list of str, "key": "SET:NAME", "name": words for what is drawn, "names": these and those
  of its aliases, "style": list of words such as "outline", "categories": list of str, "set",
  "licence", "author": str, "palette": whether the drawing has colours of its own}.

  Drawing takes 1 to 2 ms; `prepare --format=iconify` draws all of them once.

  Attributes:
    sets: attribution of each set that is read, an `IconSet`.
    skipped: number of icons that were left out, by licence.
    found, items, left_out: number of icons found, and what became of them, for `prepare`.
  """

  def __init__(
    self,
    path: FilePath,
    licences: str | tuple[str, ...] = "permissive",
    size: Annotated[int, Range(8, 2048)] = 64,
    caption: Caption = "captions",
    coloured: Fraction = 0.0,
    seed: Seed = 0,
    pixels: bool = False,
  ):
    """Lists the icons, which takes 5 s for all sets; draws none.

    Args:
      path: the folder, or one JSON file.
      licences: "permissive", those of `icon_sets.PERMISSIVE`; "all"; or SPDX identifiers. Icons
        under other licences are left out and counted.
      size: side of the drawings in pixels, S.
      caption: what the text is: "captions", a list of captions in different words (see
        `icon_captions`); "names", the list of the icon's names; or "name", the first of them.
      coloured: fraction of the single-coloured drawings that are painted in a random colour on a
        random background; the captions of those mention it. A larger fraction includes the
        drawings of a smaller one.
      seed: seed of the colours.
      pixels: whether drawings are decoded: uint8 [S, S, 3], or [S, S, 4] if they have colours of
        their own. They are then faster to read when they have been prepared.

    Raises:
      UserError: there are no icons, or a file is not a set of icons.
    """
    self.path, self.size, self.caption = os.path.abspath(path), size, caption
    self.licences, self.coloured, self.seed, self.pixels = licences, coloured, seed, pixels
    self._read()

  def _read(self):
    accepted = licence_filter(self.licences)
    self.sets: list[IconSet] = []
    self.skipped: dict[str, int] = {}
    self._icons: list[Icon] = []
    self._contents: dict[int, dict[str, Any]] = {}
    for file in set_files(self.path):
      content = read_set(file)
      described = describe_set(content, file)
      icons = visible_icons(content, len(self.sets))
      if accepted is not None and described.licence not in accepted:
        licence = described.licence
        self.skipped[licence] = self.skipped.get(licence, 0) + len(icons)
      elif icons:
        self.sets.append(described)
        self._icons += icons
    if not self._icons:
      raise UserError(
        f"{self.path} has no visible icons under the licences {self.licences!r}; left out: "
        f"{self.skipped or 'none'}. Set licences='all', or another path."
      )

  unit = "icons"

  @property
  def items(self) -> Sequence[int]:
    """Number of icons of each record: one."""
    return [1] * len(self)

  @property
  def found(self) -> int:
    """Number of visible icons, with those under other licences."""
    return len(self) + sum(self.skipped.values())

  @property
  def left_out(self) -> list[NotAskedFor]:
    """The icons under other licences."""
    return [NotAskedFor(f"licence {name}", n) for name, n in sorted(self.skipped.items())]

  def __getstate__(self) -> dict[str, Any]:
    return {key: getattr(self, key) for key in _ARGUMENTS}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._read()

  def __len__(self) -> int:
    return len(self._icons)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    icon = self._icons[i]
    owner = self.sets[icon.set]
    key = f"{owner.prefix}:{icon.name}"
    image = draw(self._document(icon, key), self.size, key)
    record = {
      "image": image,
      "key": key,
      "name": icon.words,
      "names": [icon.words, *icon.aliases],
      "style": list(icon.style),
      "categories": list(icon.categories),
      "set": owner.prefix,
      "licence": owner.licence,
      "author": owner.author,
      "palette": decode_drawing(image).ndim == 3,
    }
    if self.pixels:
      drawing = decode_drawing(image)
      record["image"] = drawing if record["palette"] else paint(drawing)
    return with_text(record, self.caption, self.coloured, self.seed, i)

  def describe(self) -> str:
    """Returns one line for the log."""
    counted = licence_counts(self.sets, self._icons).most_common()
    left = "".join(f", {n:,} under {name} left out" for name, n in sorted(self.skipped.items()))
    return (
      f"Iconify: {len(self):,} icons of {len(self.sets)} sets ("
      + ", ".join(f"{n:,} {name}" for name, n in counted)
      + f"){left}"
    )

  def attribution(self) -> list[dict[str, Any]]:
    """Returns the sets that are read, with author, URL, licence and number of icons."""
    counts = np.bincount([icon.set for icon in self._icons], minlength=len(self.sets))
    return [
      {k: v for k, v in dataclasses.asdict(one).items() if k != "file"} | {"icons": int(n)}
      for one, n in zip(self.sets, counts)
    ]

  def _document(self, icon, key):
    content = self._contents.get(icon.set)
    if content is None:
      self._contents[icon.set] = content = read_set(self.sets[icon.set].file)
    _, found = resolve(content, icon.name) or (None, {})
    try:
      left, top, width, height = (float(found[s]) for s in ("left", "top", "width", "height"))
      turn = int(found.get("rotate", 0))
      if not min(width, height) > 0:
        raise ValueError("no area")
      return svg(
        str(found["body"]),
        (left, top, width, height),
        rotate=turn,
        h_flip=bool(found.get("hFlip")),
        v_flip=bool(found.get("vFlip")),
      )
    except (KeyError, TypeError, ValueError) as error:
      raise BrokenDrawing(key, "broken drawing", f": {error!r}") from error


_ARGUMENTS = ("path", "licences", "size", "caption", "coloured", "seed", "pixels")


def with_text(
  record: dict[str, Any], caption: str, coloured: float, seed: int, i: int
) -> dict[str, Any]:
  """Adds the text to the record of an icon, and paints a fraction of the icons.

  Args:
    record: with "image", "names", "style", "categories" and "palette".
    caption: as in `Iconify`.
    coloured, seed: as in `Iconify`.
    i: index of the record, which its colours depend on.
  """
  colour = ""
  if coloured and not record["palette"]:
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
    if rng.random() < coloured:
      colour, ink, paper = random_colours(rng)
      record["image"] = paint(decode_drawing(record["image"]), ink, paper)
  names = record["names"]
  if caption == "captions":
    record["text"] = captions(names, record["style"], record["categories"], colour)
  else:
    record["text"] = list(names) if caption == "names" else names[0]
  return record
