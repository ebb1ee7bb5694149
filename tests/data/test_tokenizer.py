"""Tokenizers: fixed length, 0 for padding, end token kept, and exactly CLIP's ids."""

import html
import io
import itertools
import pickle
import random

import numpy as np
import pytest
import sentencepiece

from clip_jax.data import tokenizer as tokenizer_lib
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import ClipBpe, SentencePiece, train_sentencepiece
from clip_jax.errors import UserError

LONG = "a small red dog with a large hat " * 30


def used(row):
  return row[: np.flatnonzero(row)[-1] + 1].tolist()


# SentencePiece.


def test_the_shipped_model_covers_open_clip_art():
  tokenizer = SentencePiece(context_length=64)
  assert tokenizer.vocab_size == 4096
  rows = tokenizer([record["text"] for record in OpenClipart("test")])
  assert rows.shape == (459, 64) and rows.dtype == np.int32 and rows.max() < 4096
  assert (rows == 1).sum() < 0.002 * (rows > 0).sum()
  assert tokenizer._processor.decode(used(tokenizer(["Flag of ITALY"])[0])) == "flag of italy"


def test_truncated_texts_keep_their_end_token():
  assert all(
    used(row)[-1] == 3 and len(used(row)) == length
    for length in (2, 16)
    for row in SentencePiece(context_length=length)([LONG])
  )
  assert SentencePiece(eos=False)([LONG])[0, -1] > 3


def test_begin_end_and_padding_tokens_follow_the_options():
  plain = used(SentencePiece(eos=False)(["a red dog"])[0])
  assert min(plain) > 3
  assert used(SentencePiece()(["a red dog"])[0]) == [*plain, 3]
  assert used(SentencePiece(bos=True)(["a red dog"])[0]) == [2, *plain, 3]
  sticky = SentencePiece(sticky_eos=True)(["a red dog"])[0].tolist()
  assert sticky == plain + [3] * (16 - len(plain))


def test_no_row_is_all_padding():
  for options in ({}, dict(eos=False), dict(bos=True, eos=False)):
    assert (SentencePiece(**options)(["", "  "]).max(1) > 0).all()


def test_case_matters_only_without_lower():
  lower, cased = SentencePiece(), SentencePiece(lower=False)
  assert np.array_equal(lower(["A Red DOG"]), lower(["a red dog"]))
  assert not np.array_equal(cased(["A Red DOG"]), cased(["a red dog"]))


@pytest.mark.parametrize("tokenizer", [SentencePiece(bos=True, context_length=9), ClipBpe(9)])
def test_tokenizers_are_picklable(tokenizer):
  again = pickle.loads(pickle.dumps(tokenizer))
  assert np.array_equal(again([LONG, "dog"]), tokenizer([LONG, "dog"]))
  assert (again.context_length, again.vocab_size) == (9, tokenizer.vocab_size)


def test_a_trained_model_can_be_used(tmp_path):
  path = str(tmp_path / "a.model")
  texts = [record["text"].lower() for record in OpenClipart("val")]
  assert train_sentencepiece(texts, path, 300) == 300
  tokenizer = SentencePiece(path, context_length=32)
  assert tokenizer.vocab_size == 300
  row = tokenizer([texts[0]])[0]
  assert tokenizer._processor.decode(used(row)) == texts[0] and used(row)[-1] == 3


def test_training_errors_raise(tmp_path):
  with pytest.raises(UserError, match="SentencePiece cannot train 3 pieces"):
    train_sentencepiece(["a red dog"] * 9, str(tmp_path / "a.model"), 3)
  with pytest.raises(UserError, match="check that the source has texts"):
    train_sentencepiece([], str(tmp_path / "a.model"), 100)


def foreign(tmp_path, **options):
  """Trains a model with other special pieces than `train_sentencepiece` uses."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a red dog", "a blue cat"] * 20),
    model_writer=model,
    vocab_size=20,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  path = tmp_path / "foreign.model"
  path.write_bytes(model.getvalue())
  return str(path)


def test_unsuitable_models_raise(tmp_path):
  with pytest.raises(UserError, match="Piece 0 of the model .* is '<unk>', but must be padding"):
    SentencePiece(foreign(tmp_path))
  path = foreign(tmp_path, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1)
  with pytest.raises(UserError, match="no end piece. Set eos=False"):
    SentencePiece(path)
  with pytest.raises(UserError, match="no begin piece. Set bos=False"):
    SentencePiece(path, bos=True, eos=False)
  SentencePiece(path, eos=False)
  (tmp_path / "x.model").write_text("hello")
  with pytest.raises(UserError, match="x.model is not a SentencePiece model"):
    SentencePiece(str(tmp_path / "x.model"))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: SentencePiece("openclipart-8k"), "No SentencePiece model at openclipart-8k.*-4k"),
    (
      lambda: SentencePiece(context_length=1),
      "context_length=1 leaves no room for text; set at least 2",
    ),
    (lambda: SentencePiece(context_length=2, bos=True), "at least 3"),
    (lambda: ClipBpe(2), "context_length is 2; ClipBpe expects an integer of at least 3"),
  ],
)
def test_invalid_arguments_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()


# CLIP's byte-pair encoding.


@pytest.mark.parametrize(
  "text, tokens",
  [
    ("a photo of a cat", [320, 1125, 539, 320, 2368]),
    ("hello world!", [3306, 1002, 256]),
    ("", []),
    ("a  photo\n of a CAT ", [320, 1125, 539, 320, 2368]),
  ],
)
def test_clip_tokens_match_openai(text, tokens):
  row = ClipBpe()([text])[0]
  assert row.shape == (77,) and row.dtype == np.int32
  assert used(row) == [49406, *tokens, 49407]


def test_clip_unescapes_html_and_parses_special_tokens():
  clip = ClipBpe()
  assert np.array_equal(clip(["cats &amp;amp; dogs"]), clip(["cats & dogs"]))
  assert used(clip(["a <|endoftext|> b"])[0])[2] == 49407


def test_truncated_clip_texts_keep_their_end_token():
  row = ClipBpe(8)([LONG])[0]
  assert row[0] == 49406 and row[-1] == 49407 and (row > 0).all()
  assert row[1:-1].tolist() == ClipBpe()([LONG])[0, 1:7].tolist()


def words(text):
  """Splits text as CLIP's pattern does, one character at a time."""
  found, i = [], 0
  while i < len(text):
    kind = lambda c: "L" if c.isalpha() else "N" if c.isnumeric() else " " if c.isspace() else "S"
    ending = next(
      (e for e in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(e, i)), None
    )
    j = i + 1
    if ending:
      j = i + len(ending)
    elif kind(text[i]) in "LS":
      while j < len(text) and kind(text[j]) == kind(text[i]):
        j += 1
    if kind(text[i]) != " ":
      found.append(text[i:j])
    i = j
  return found


def naive_encoding(text, vocabulary, ranks):
  """Byte-pair encoding as in the paper: repeatedly merges the best-ranked pair."""
  names = list(vocabulary)[:256]
  order = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letter = dict(zip(order + [b for b in range(256) if b not in order], names))
  tokens = []
  for word in words(html.unescape(text).lower()):
    parts = [letter[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while pairs := [p for p in itertools.pairwise(parts) if p in ranks]:
      best = min(pairs, key=ranks.get)
      i = 0
      while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) == best:
          parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1
    tokens += [vocabulary[part] for part in parts]
  return tokens


def test_clip_tokens_match_a_naive_implementation():
  vocabulary = tokenizer_lib.clip_vocabulary()
  merges = tokenizer_lib.clip_merges()
  assert len(vocabulary) == ClipBpe.vocab_size == 49_408 and len(merges) == 48_894
  ranks = {pair: i for i, pair in enumerate(merges)}
  texts = [record["text"] for record in OpenClipart("test", "caption_long")]
  texts += [
    "it's they'll 1234 ab12 ...!? $5.00",
    "naïve café über straße",
    "日本語 テキスト",
    "🙂🙃 ok",
  ]
  letters = random.Random(0)
  texts += ["".join(letters.choices("aeiou nrtls-'.3é", k=30)) for _ in range(200)]
  clip = ClipBpe(300)
  for text, row in zip(texts, clip(texts)):
    assert used(row)[1:-1] == naive_encoding(text, vocabulary, ranks), text
