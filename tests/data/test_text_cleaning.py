"""Tokens of 300 odd texts, compared with those of open_clip and transformers; see tests/golden."""

import json
from pathlib import Path

import pytest

from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, TokenizerJson
from clip_jax.data.text_cleaning import CLEANERS, fix_text
from clip_jax.data.tokenizer import ClipBpe

FOLDER = Path(__file__).parents[1] / "golden/tokenizers"
BYTES = str(FOLDER / "tokenizer.json")
GEMMA = str(FOLDER / "gemma.json")


@pytest.fixture(scope="module")
def golden():
  return json.loads((FOLDER / "texts.json").read_text())


def ids(rows):
  """Removes padding: zeros, or repetitions of the last token."""
  made = []
  for row in rows:
    row = [int(i) for i in row]
    while len(row) > 1 and (row[-1] == 0 or row[-1] == row[-2]):
      row.pop()
    made.append(row)
  return made


@pytest.mark.parametrize(
  "name, make",
  [
    ("SimpleTokenizer", lambda: ClipBpe(96)),
    ("CLIPTokenizer", lambda: ClipBpe(96, fix_text=False)),
    ("PreTrainedTokenizerFast", lambda: TokenizerJson(BYTES, 160)),
    ("Siglip2Tokenizer", lambda: CleanedTokenizer(TokenizerJson(GEMMA, 160), "lower")),
    *(
      (
        f"HFTokenizer {clean}",
        lambda clean=clean: CleanedTokenizer(TokenizerJson(BYTES, 160), f"open_clip_{clean}"),
      )
      for clean in ("canonicalize", "lower", "whitespace")
    ),
  ],
)
def test_tokens_are_those_of_the_other_library(golden, name, make):
  expected, got = ids(golden["tokens"][name]), ids(make()(golden["texts"]))
  differ = [golden["texts"][i] for i in range(300) if expected[i] != got[i]]
  assert len(golden["texts"]) == 300 and differ == []


def test_plain_text_stays_as_it_is():
  assert fix_text(" A dog's 5% <b>\n") == "A dog's 5% <b>"


@pytest.mark.parametrize("clean", CLEANERS)
def test_cleaning_twice_changes_nothing_more_in_plain_text(clean):
  once = CLEANERS[clean](" A  Red_dog, & 'cat'!\n")
  assert CLEANERS[clean](once) == once
