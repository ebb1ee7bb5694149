"""Cleans texts before they are tokenised, each way exactly as one of the other libraries does."""

from collections.abc import Callable
import html
import re
import string

import tokenizers

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# ftfy leaves printable ASCII without entities as it is, and need not be imported to do so.
_PLAIN = re.compile(r"[ -%'-~\t\n]*")


def fix_text(text: str) -> str:
  """Repairs text as CLIP's published code does: with ftfy, and by unescaping HTML twice.

  Args:
    text: a caption, possibly decoded wrongly ("cafÃ©") or escaped ("&amp;amp;").
  """
  if not _PLAIN.fullmatch(text):
    import ftfy

    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
  return text.strip()


def collapse_spaces(text: str) -> str:
  """Replaces each run of white space by one space, and strips the text."""
  return " ".join(text.split())


def _words(text):
  return collapse_spaces(text.replace("_", " ").translate(_NO_PUNCTUATION).lower())


CLEANERS: dict[str, Callable[[str], str]] = {
  # As in Hugging Face's Siglip2Tokenizer: one character at a time, unlike `str.lower`.
  "lower": tokenizers.normalizers.Lowercase().normalize_str,
  "whitespace": collapse_spaces,
  # These two lower-case and remove punctuation: "words" as in big_vision, "letters" as in Hugging
  # Face's SiglipTokenizer, which keeps words joined by an underscore together.
  "words": _words,
  "letters": lambda text: collapse_spaces(text.lower().translate(_NO_PUNCTUATION)),
  # As in open_clip, by the names of its option `clean`.
  "open_clip_canonicalize": lambda text: _words(fix_text(text)),
  "open_clip_lower": lambda text: collapse_spaces(fix_text(text)).lower(),
  "open_clip_whitespace": lambda text: collapse_spaces(fix_text(text)),
}
