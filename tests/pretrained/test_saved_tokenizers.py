"""The tokenizer of a Hugging Face directory: its tokenizer.json is used as transformers does."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, TokenizerJson
from clip_jax.data.tokenizer import ClipBpe
from clip_jax.pretrained import hugging_face

GOLDEN = Path(__file__).parents[1] / "golden/tokenizers"
TEXTS = ["  A café &amp;\tSNAKE_case!", "ΟΔΟΣ", "plain"]


def tokenizer_of(folder, form, name=None, vocabulary=300):
  if name is not None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
  text = {"max_position_embeddings": 64, "vocab_size": vocabulary}
  return build(hugging_face._tokenizer(folder, form, text))


@pytest.mark.parametrize("vocabulary", [300, ClipBpe.vocab_size])
def test_a_tokenizer_json_receives_the_texts_unchanged(tmp_path, vocabulary):
  shutil.copy(GOLDEN / "tokenizer.json", tmp_path)
  made = tokenizer_of(tmp_path, "clip", "CLIPTokenizer", vocabulary)
  expected = TokenizerJson(str(GOLDEN / "tokenizer.json"), 64)(TEXTS)
  np.testing.assert_array_equal(made(TEXTS), expected)


@pytest.mark.parametrize(
  "name, clean", [("Siglip2Tokenizer", "lower"), ("SiglipTokenizer", "letters"), (None, "lower")]
)
def test_siglip_cleans_first(tmp_path, name, clean):
  shutil.copy(GOLDEN / "tokenizer.json", tmp_path)
  expected = CleanedTokenizer(TokenizerJson(str(GOLDEN / "tokenizer.json"), 64), clean)(TEXTS)
  np.testing.assert_array_equal(tokenizer_of(tmp_path, "siglip", name)(TEXTS), expected)


def test_a_directory_with_clips_vocabulary_and_no_tokenizer_json(tmp_path):
  made = tokenizer_of(tmp_path, "clip", "CLIPTokenizer", ClipBpe.vocab_size)
  np.testing.assert_array_equal(made(TEXTS), ClipBpe(64, fix_text=False)(TEXTS))
