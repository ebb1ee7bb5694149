"""Suggestions for mistyped names."""

from collections.abc import Iterable
import difflib


def closest(name: str, known: Iterable[str]) -> str | None:
  """The known name that is most like `name`, or None if none is similar."""
  close = difflib.get_close_matches(name, list(known), 1)
  return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], form: str = "{!r}") -> str:
  """Returns " Did you mean 'x'?" for an error message, or "" if no known name is similar.

  Args:
    form: how the suggestion is written, as "--{}" for a flag.
  """
  close = closest(name, known)
  return f" Did you mean {form.format(close)}?" if close else ""
