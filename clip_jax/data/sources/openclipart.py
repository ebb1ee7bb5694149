"""Open Clip Art data set: 5,393 public domain drawings with captions, at most 96 pixels a side."""

import pathlib
from typing import Annotated, Any, Literal

from clip_jax.cli.values import Fraction, Length, OneOf, checked
from clip_jax.data.records import ArrayRecord
from clip_jax.errors import UserError

_FOLDER = pathlib.Path(__file__).parent.parent / "assets" / "openclipart"
Split = Literal["train", "val", "test"]
FIELDS = ("caption", "caption_long", "title", "keywords", "description")
Field = Annotated[str, OneOf(FIELDS)]


@checked
class OpenClipart:
  """Source of Open Clip Art drawings with captions, included in the package.

  A record is {"image": WebP bytes, "text": str or list of str, "subset": str, "label": int, index
  of the subset in `classes`, "key": str, "swapped": whether the text belongs to another record}.
  `assets/openclipart/README.md` describes the data.

  Attributes:
    classes: names of the subsets by label.
  """

  classes = ("card", "clipart", "flag", "icon", "pattern", "shape", "symbol")

  def __init__(
    self,
    split: Split = "train",
    caption: Field | Annotated[tuple[Field, ...], Length(1)] = "caption",
    swapped: Fraction = 0.0,
  ):
    """Opens one split.

    Args:
      split: "train", "val" or "test"; near-duplicates are always in the same split.
      caption: field to use as the text: caption, caption_long, title, keywords or description. If a
        tuple of fields, the text is a list with one text per field, and `Views` draws one of them
        at each visit. Empty fields are replaced by the caption.
      swapped: fraction of the training records that get the text of another record. The choice is
        deterministic, and a larger fraction includes the records of a smaller one.

    Raises:
      UserError: `swapped` is used with another split than "train".
    """
    fields = (caption,) if isinstance(caption, str) else tuple(caption)
    if swapped and split != "train":
      raise UserError(
        f"swapped={swapped} works with the train split only, not with {split}. Leave "
        "it at 0, so that the evaluation uses the correct captions."
      )
    self.split, self.fields, self.swapped = split, fields, swapped
    self.several = not isinstance(caption, str)
    self.records = ArrayRecord(str(_FOLDER / f"{split}.array_record"))

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self.records[i]
    swapped = record.get("u", 1.0) < self.swapped
    described = self.records[record["mismatch"]] if swapped else record
    texts = [described[field] or described["caption"] for field in self.fields]
    return {
      "image": record["image"],
      "text": texts if self.several else texts[0],
      "subset": record["subset"],
      "label": self.classes.index(record["subset"]),
      "key": record["key"],
      "swapped": swapped,
    }
