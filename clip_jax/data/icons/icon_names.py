"""Splits names of icons into words for what is drawn, and words for how it is drawn."""

from collections import Counter
from collections.abc import Collection, Iterable
import re

# Words for how something is drawn, at the start or the end of a name, with the word for captions.
STYLES = {
  "outline": "outline",
  "outlined": "outline",
  "o": "outline",
  "line": "outline",
  "linear": "outline",
  "stroke": "outline",
  "fill": "filled",
  "filled": "filled",
  "f": "filled",
  "solid": "filled",
  "baseline": "filled",
  "bold": "bold",
  "thin": "thin",
  "light": "light",
  "regular": "regular",
  "medium": "",
  "basic": "regular",
  "duotone": "two-tone",
  "twotone": "two-tone",
  "duo": "two-tone",
  "sharp": "sharp",
  "round": "rounded",
  "rounded": "rounded",
  "broken": "broken",
  "flat": "flat",
  "color": "colour",
  "colors": "colour",
  "colour": "colour",
  "dark": "dark",
  "plain": "",
  "original": "",
  "remix": "",
  "block": "",
  "print": "",
  "pop": "",
  "small": "small",
  "loop": "",
  "alt": "",
  "transition": "",
  "background": "",
  "branded": "",
  "wordmark": "wordmark",
}
_NUMBER = re.compile(r"\d{1,3}(px)?|\d+x\d+")
_NUMBERED = re.compile(r"([a-z]{3,})\d{1,2}")
_LEAST_SHARE = 0.03  # Of the names of a set that end in a word, for it to be one of style.
_LEAST = 4


class Naming:
  """How one set names its icons.

  "line" is a style in "search-line" of a set where many names end in it, but not in "chart-line"
  of a set where few do. So a word of style, or a number, is only taken off if at least 3% of the
  set's names have it in that place, or if the set lists it among its suffixes and prefixes.
  """

  def __init__(self, names: Collection[str], suffixes: Iterable[str], prefixes: Iterable[str]):
    """Finds the styles of a set.

    Args:
      names: the names of its icons, such as "trash-can-outline".
      suffixes, prefixes: those that the set lists itself, such as "24-filled".
    """
    self._ends = {word for suffix in suffixes for word in suffix.split("-") if word}
    self._starts = {word for prefix in prefixes for word in prefix.split("-") if word}
    least = max(_LEAST_SHARE * len(names), _LEAST)
    # Styles are nested, as in "zoom-out-24-filled": those inside are found without those outside.
    for _ in range(4):
      left = [self._bare(name) for name in names]
      kinds = [(_kind(words[-1]), len(words) > 1) for words in left]
      ends = Counter(kind for kind, several in kinds if several or kind == "a#")
      starts = Counter(words[0] for words in left if len(words) > 1)
      new = {
        word for word, n in ends.items() if n >= least and (word in STYLES or word in ("#", "a#"))
      }
      fresh = {word for word, n in starts.items() if n >= least and word in STYLES}
      if new <= self._ends and fresh <= self._starts:
        break
      self._ends |= new
      self._starts |= fresh

  def split(self, name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the words for what is drawn, "trash can", and those of style, ("outline",)."""
    words = name.lower().split("-")
    kept = self._bare(name)
    start = len(words) - len(self._after_start(words))
    outside = words[:start] + words[start + len(kept) :]
    style = dict.fromkeys(STYLES[word] for word in outside if STYLES.get(word))
    if "a#" in self._ends and (numbered := _NUMBERED.fullmatch(kept[-1])):
      kept = [*kept[:-1], numbered[1]]
    return " ".join(kept), tuple(style)

  def _after_start(self, words):
    while len(words) > 1 and words[0] in self._starts:
      words = words[1:]
    return words

  def _bare(self, name):
    words = self._after_start(name.lower().split("-"))
    number = "#" in self._ends
    while len(words) > 1 and (words[-1] in self._ends or (number and _kind(words[-1]) == "#")):
      words = words[:-1]
    return words


def _kind(word):
  """Returns "#" for a number, "a#" for a word with a number at its end, else the word."""
  if _NUMBER.fullmatch(word):
    return "#"
  return "a#" if _NUMBERED.fullmatch(word) else word
