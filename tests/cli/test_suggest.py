"""Suggestions for mistyped names."""

from pathlib import Path

import pytest

from clip_jax.cli.suggest import closest, did_you_mean

PACKAGE = Path(__file__).parents[2] / "clip_jax"


@pytest.mark.parametrize(
  "name, form, expected",
  [
    ("captoin", "{!r}", " Did you mean 'caption'?"),
    ("imag", "--{}", " Did you mean --image?"),
    ("zzz", "{!r}", ""),
    ("", "{!r}", ""),
  ],
)
def test_only_a_similar_name_is_suggested(name, form, expected):
  assert did_you_mean(name, iter(("image", "caption")), form) == expected


def test_the_most_similar_name_is_chosen():
  assert closest("openai_8", ["openai_7", "openai_80", "none"]) == "openai_80"
  assert closest("image", []) is None


def test_no_other_module_searches_for_similar_names():
  users = [p for p in PACKAGE.rglob("*.py") if "difflib" in p.read_text()]
  assert users == [PACKAGE / "cli/suggest.py"]
