"""Tokenizers loaded from the tokenizer.json of a checkpoint."""

import pickle

import numpy as np
import pytest
import tokenizers

from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, MissingTokenizer, TokenizerJson
from clip_jax.errors import UserError


@pytest.fixture(name="path")
def file(tmp_path):
  words = {
    "<pad>": 0,
    "<end>": 1,
    "<unk>": 2,
    "a": 3,
    "dog": 4,
    "red_dog": 5,
    "reddog": 6,
    "red": 7,
  }
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A <end>", special_tokens=[("<end>", 1)]
  )
  made.save(str(tmp_path / "tokenizer.json"))
  return str(tmp_path / "tokenizer.json")


def test_texts_are_truncated_and_padded(path):
  made = TokenizerJson(path, context_length=4, padding=7)
  tokens = made(["a dog", "a a a dog dog", "", "a cat"])
  assert tokens.dtype == np.int32 and made.vocab_size == 8 and made.context_length == 4
  np.testing.assert_array_equal(tokens, [[3, 4, 1, 7], [3, 3, 3, 1], [1, 7, 7, 7], [3, 2, 1, 7]])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(made))(["a dog"]), tokens[:1])


@pytest.mark.parametrize(
  "clean, tokens",
  [
    ("whitespace", [2, 5, 1, 0]),
    ("lower", [3, 5, 1, 0]),
    ("words", [3, 7, 4, 1]),
    ("letters", [3, 6, 1, 0]),
  ],
)
def test_cleaning(path, clean, tokens):
  made = CleanedTokenizer(TokenizerJson(path, context_length=4), clean)
  assert (made.context_length, made.vocab_size) == (4, 8)
  text = "A  red_dog" if clean in ("whitespace", "lower") else "A red_dog!"
  np.testing.assert_array_equal(made([text])[0], tokens)


def test_invalid_arguments_raise(path, tmp_path):
  with pytest.raises(UserError, match="No tokenizer at .*nowhere.json"):
    TokenizerJson(str(tmp_path / "nowhere.json"))
  (tmp_path / "bad.json").write_text("{}")
  with pytest.raises(UserError, match="bad.json is not a tokenizer.json"):
    TokenizerJson(str(tmp_path / "bad.json"))
  with pytest.raises(
    UserError, match="clean is 'scrub'; CleanedTokenizer expects 'lower', 'whites"
  ):
    CleanedTokenizer(TokenizerJson(path), "scrub")
  with pytest.raises(UserError, match="the cat ate it"):
    MissingTokenizer("the cat ate it", 8, 64)(["a dog"])
