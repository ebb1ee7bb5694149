"""Sets of icons that nobody trains on, so that everybody tests on the same ones."""

import functools
import json
from pathlib import Path

_FILE = Path(__file__).parent.parent / "assets" / "icons" / "held_out.json"
KINDS = ("line", "solid", "colour", "pixel", "logos", "emoji")
# Splits by number in the index: groups of drawings, then the kinds of held-out sets.
SPLITS = ("train", "val", "test", *KINDS)
HELD_OUT = ("held_out",)  # All kinds.


@functools.cache
def held_out_sets() -> dict[str, tuple[str, ...]]:
  """Returns the prefixes of the held-out sets by kind, one of `KINDS`."""
  with open(_FILE, encoding="utf-8") as f:
    return {kind: tuple(sets) for kind, sets in json.load(f).items()}


def kind_of(prefix: str) -> str | None:
  """Returns the kind of a held-out set, None if it is not held out."""
  return next((kind for kind, sets in held_out_sets().items() if prefix in sets), None)
