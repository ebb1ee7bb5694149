"""Decides what is a caption: text, or nothing."""

import math
from typing import Any

from clip_jax.data.outcomes import Dropped


def caption_texts(value: Any, language: str | None = None) -> tuple[list[str], list[str]]:
  """Returns the texts of a value that should be one caption or several.

  Args:
    value: str, UTF-8 bytes, a list of these, or a dict of these by language.
    language: key of the caption to use in a dict; None if no dicts are expected.

  Returns:
    (texts, without byte order marks and NULs and stripped, at least one; for each entry of a list
    that was left out, the reason).

  Raises:
    Dropped: there is no text: "no text", "empty text", "text is a number", "text is NaN", "text is
      a boolean", "text is a dict", "no text in this language", "invalid UTF-8" or "lone surrogate".
  """
  if isinstance(value, dict):
    if language is None:
      raise Dropped("text is a dict")
    if value.get(language) is None:
      raise Dropped("no text in this language")
    value = value[language]
  if not isinstance(value, (list, tuple)):
    return [_text(value)], []
  texts, left_out = [], []
  for one in value:
    try:
      texts.append(_text(one))
    except Dropped as dropped:
      left_out.append(dropped.reason)
  if not texts:
    raise Dropped(left_out[0] if left_out else "empty text")
  return texts, left_out


def _text(value):
  """Returns a non-empty text, or raises `Dropped`."""
  if isinstance(value, (bytes, bytearray)):
    try:
      value = bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
      raise Dropped("invalid UTF-8") from error
  if not isinstance(value, str):
    raise Dropped(_kind(value))
  if not value.isascii():
    try:
      value.encode("utf-8")  # Strings from JSON may contain lone surrogates.
    except UnicodeEncodeError as error:
      raise Dropped("lone surrogate") from error
    value = value.replace("\ufeff", "")
  text = value.replace("\0", "").strip()
  if not text:
    raise Dropped("empty text")
  return text


def _kind(value):
  if value is None:
    return "no text"
  if isinstance(value, bool):
    return "text is a boolean"
  if isinstance(value, float) and math.isnan(value):
    return "text is NaN"
  if isinstance(value, (int, float)):
    return "text is a number"
  return f"text is a {type(value).__name__}"[:40]
