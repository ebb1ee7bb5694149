"""The drawings that come with the package: 5,393 real pairs, public domain, at most 96 pixels."""

import pathlib
from typing import Any

from clip_jax.data.records import ArrayRecord
from clip_jax.errors import UserError

_FOLDER = pathlib.Path(__file__).parent.parent / "assets" / "openclipart"
SPLITS = ("train", "val", "test")
FIELDS = ("caption", "caption_long", "title", "keywords", "description")


class OpenClipart:
  """Source of Open Clip Art drawings and their captions; `assets/openclipart/README.md` says more.

  A record is {"image": WebP bytes, "text": str or list of str, "subset": str, "label": int, which
  is the subset's place in `classes`, "key": str, "swapped": whether the text is of another record}.

  Attributes:
    classes: names of the subsets, by label.
  """

  classes = ("card", "clipart", "flag", "icon", "pattern", "shape", "symbol")

  def __init__(self, split: str = "train", caption: str | tuple[str, ...] = "caption",
               swapped: float = 0.0):
    """Opens one split.

    Args:
      split: "train", "val" or "test"; near-duplicates are never on both sides.
      caption: the field that is the text: caption, caption_long, title, keywords or description. Or
        several: then the text is a list of that length, of which `Views` draws one at each visit.
        A field that a record lacks gives way to its caption.
      swapped: share of the training records that get the text of another one. Which, is fixed, and
        those of a smaller share are among those of a larger one.

    Raises:
      UserError: no such split or field, or `swapped` is not a share or not of the training split.
    """
    if split not in SPLITS:
      raise UserError(f"openclipart has no split {split!r}; it has {', '.join(SPLITS)}.")
    fields = (caption,) if isinstance(caption, str) else tuple(caption)
    unknown = [field for field in fields if field not in FIELDS]
    if unknown or not fields:
      raise UserError(f"openclipart has no text field {', '.join(map(repr, unknown)) or '()'}; it "
                      f"has {', '.join(FIELDS)}.")
    if not 0 <= swapped <= 1:
      raise UserError(f"swapped {swapped} is not a share between 0 and 1.")
    if swapped and split != "train":
      raise UserError(f"swapped {swapped} is for the train split only, and this is {split}; leave "
                      "it at 0 here, so that the evaluation is on the right captions.")
    self.split, self.fields, self.swapped = split, fields, swapped
    self.several = not isinstance(caption, str)
    self.records = ArrayRecord(str(_FOLDER / f"{split}.array_record"))

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self.records[i]
    swapped = record.get("u", 1.0) < self.swapped
    told = self.records[record["mismatch"]] if swapped else record
    texts = [told[field] or told["caption"] for field in self.fields]
    return {"image": record["image"], "text": texts if self.several else texts[0],
            "subset": record["subset"], "label": self.classes.index(record["subset"]),
            "key": record["key"], "swapped": swapped}
