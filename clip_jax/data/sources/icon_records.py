"""Icons that `prepare --format=iconify` has drawn, by split."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clip_jax.cli.values import FilePath, Fraction, Seed, checked
from clip_jax.data.icons.held_out_sets import KINDS, SPLITS
from clip_jax.data.icons.icon_drawing import decode_drawing, paint
from clip_jax.data.npz_file import UnreadableNpz, read_npz
from clip_jax.data.records import ArrayRecord
from clip_jax.data.selection import record_number
from clip_jax.data.sources.iconify import Caption, with_text
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError

Split = Literal[
  "train", "val", "test", "line", "solid", "colour", "pixel", "logos", "emoji", "held_out", "all"
]
_INDEX = dict(split=np.uint8, group=np.int32, drawing=np.int32, label=np.int32, seen=np.bool_)


@checked
class IconRecords:
  """Source of prepared icons.

  A record is that of `Iconify`, with "image" as uint8 [S, S, 3] and further fields: "group" and
  "drawing", numbers of its group and drawing; "seen", whether an icon of a held-out set has a near
  duplicate in train; "label", a list with the number of its name in `classes`, empty if it is not
  one of them; "labels", those of all names of the drawing, also those that other sets give it; and
  "concept", all names of the drawing.

  Attributes:
    classes: the names that most sets share, by label.
    sets: attribution of each set: prefix, name, author, url, licence, number of icons.
  """

  def __init__(
    self,
    path: FilePath,
    split: Split = "train",
    caption: Caption = "captions",
    coloured: Fraction = 0.0,
    seed: Seed = 0,
    seen: bool = True,
    named: bool = False,
    categorised: tuple[str, ...] = (),
  ):
    """Opens one split.

    Args:
      path: the folder that `prepare --format=iconify` wrote.
      split: "train", "val" or "test", which no group of drawings is in two of; a kind of held-out
        sets: "line", "solid", "colour", "pixel", "logos" or "emoji"; "held_out", all of these; or
        "all" of the icons.
      caption, coloured, seed: as in `Iconify`.
      seen: whether to include icons of held-out sets with a near duplicate in train.
      named: whether to include only icons whose name is in `classes`.
      categorised: include only icons that their set sorts into one of these categories, in lower
        case. The records then have "category", the first of these that the icon is in.

    Raises:
      UserError: there are no prepared icons at `path`, or none are selected.
    """
    self.path, self.split, self.caption = os.path.abspath(path), split, caption
    self.coloured, self.seed = coloured, seed
    self.records = ArrayRecord(self.path)
    summary = read_json(Path(self.path) / "icons.json", dict, _ADVICE)
    self.classes = tuple(summary["concepts"])
    self.sets = self.records.manifest.get("sets", [])
    self._synonyms = {int(k): tuple(v) for k, v in summary["synonyms"].items()}
    self._numbers = {name: i for i, name in enumerate(self.classes)}
    index = self._read_index()
    chosen = np.ones(len(self.records), bool)
    if split == "held_out":
      chosen = index["split"] >= SPLITS.index(KINDS[0])
    elif split != "all":
      chosen = index["split"] == SPLITS.index(split)
    if not seen:
      chosen &= ~index["seen"]
    if named:
      chosen &= index["label"] >= 0
    self.categorised = tuple(categorised)
    self._places = np.flatnonzero(chosen)
    if categorised:
      kept = [bool(self._category(self.records[int(place)])) for place in self._places]
      self._places = self._places[kept]
    if not len(self._places):
      raise UserError(f"{path} has no icons of split={split!r}. Choose another split or folder.")
    self._index = {name: values[self._places] for name, values in index.items()}

  def _read_index(self):
    where = Path(self.path) / "icons.npz"
    try:
      index = read_npz(where, lambda _: list(_INDEX))
    except (OSError, UnreadableNpz) as error:
      raise UserError(f"{where} cannot be read: {error}. {_ADVICE}") from error
    for name, dtype in _INDEX.items():
      if index[name].shape != (len(self.records),) or index[name].dtype != dtype:
        raise UserError(f"{where} does not belong to the shards next to it. {_ADVICE}")
    return index

  def _category(self, record):
    """Returns the first of `categorised` that an icon is in, or ""."""
    own = {category.casefold() for category in record["categories"]}
    return next((category for category in self.categorised if category in own), "")

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = record_number(i, len(self))
    place = int(self._places[i])
    record = with_text(self.records[place], self.caption, self.coloured, self.seed, place)
    image = record["image"]
    if isinstance(image, bytes) or image.shape[2] == 4:
      record["image"] = paint(decode_drawing(image))
    drawing = int(self._index["drawing"][i])
    concept = tuple(dict.fromkeys((*record["names"], *self._synonyms.get(drawing, ()))))
    label = int(self._index["label"][i])
    if self.categorised:
      record["category"] = self._category(record)
    return record | {
      "group": int(self._index["group"][i]),
      "drawing": drawing,
      "seen": bool(self._index["seen"][i]),
      "label": [label] if label >= 0 else [],
      "labels": [self._numbers[name] for name in concept if name in self._numbers],
      "concept": list(concept),
    }

  def describe(self) -> str:
    """Returns one line for the log."""
    return f"IconRecords: {len(self):,} icons, split {self.split}"


_ADVICE = "Write it with python -m clip_jax.prepare --format=iconify."
