"""Texts to token numbers, of a fixed length; 0 is padding."""

from collections.abc import Callable, Iterable, Sequence
import functools
import gzip
import html
import io
import pathlib
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from clip_jax.errors import UserError

# (n, room) -> which of a text's n pieces are kept, `room` indices; n > room.
Keep = Callable[[int, int], Sequence[int]]

_FOLDER = pathlib.Path(__file__).parent / "assets" / "tokenizers"
SHIPPED = ("openclipart-1k", "openclipart-4k")


class SentencePiece:
  """Tokens of a SentencePiece model; picklable.

  A text without any token is one unknown token, because a row of nothing but padding has no mean.

  Attributes:
    length: L.
    vocabulary: number of pieces.
  """

  def __init__(self, model: str = "openclipart-4k", length: int = 16, lower: bool = True,
               bos: bool = False, eos: bool = True, sticky_eos: bool = False):
    """Loads the model.

    Args:
      model: "openclipart-4k" or "openclipart-1k" (4,096 and 1,024 pieces; they come with the
        package: the fewer pieces, the more captions share each of them), or the path of a model
        with padding as piece 0, such as `train_sentencepiece` makes.
      length: L, tokens a text. Longer ones are cut; the end token stays.
      lower: whether texts are put in lower case first.
      bos: whether a token says where the text begins.
      eos: whether a token says where it ends. Wanted by a tower that pools "last" or "eot".
      sticky_eos: whether the end token also takes the place of padding, so that the last one is
        always an end token, as in big_vision.

    Raises:
      UserError: no such model, one without a piece that is needed, or a length too small.
    """
    path = _FOLDER / f"{model}.model" if model in SHIPPED else pathlib.Path(model)
    if not path.is_file():
      raise UserError(f"No SentencePiece model at {model}, and none of that name is shipped; "
                      f"shipped: {', '.join(SHIPPED)}. Train one with python -m clip_jax.prepare.")
    if length < 1 + bos + eos:
      raise UserError(f"length {length} leaves no room for text; at least {1 + bos + eos}.")
    self.length, self.lower = length, lower
    self.bos, self.eos, self.sticky_eos = bos, eos, sticky_eos
    self._proto = path.read_bytes()
    try:
      self._load()
    except RuntimeError as error:
      raise UserError(f"{path} is not a SentencePiece model: {error}") from error
    pieces = self._processor
    for name, wanted, number in (("begin", bos, pieces.bos_id()),
                                 ("end", eos or sticky_eos, pieces.eos_id())):
      if wanted and number < 0:
        raise UserError(f"The model {model} has no {name} piece. Set {name[0]}os=False, or train "
                        "one with python -m clip_jax.prepare.")
    if 0 in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()):
      raise UserError(f"Piece 0 of the model {model} is {pieces.id_to_piece(0)!r}, and 0 is "
                      "padding here. Train with pad_id=0, as python -m clip_jax.prepare does.")

  def _load(self):
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._proto)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_processor"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._load()

  @property
  def vocabulary(self) -> int:
    """Token numbers are below it."""
    return self._processor.vocab_size()

  @property
  def end(self) -> int:
    """Number of the end token, -1 where the model has none."""
    return self._processor.eos_id()

  @property
  def model(self) -> bytes:
    """The SentencePiece model, as a file holds it."""
    return self._proto

  def __call__(self, texts: Sequence[str], keep: Keep | None = None) -> np.ndarray:
    """Texts -> int32 [len(texts), L]; `keep` says which pieces of long ones; else the first."""
    pieces = self._processor
    if self.lower:
      texts = [text.lower() for text in texts]
    starts = [pieces.bos_id()] if self.bos else []
    ends = [pieces.eos_id()] if self.eos else []
    room = self.length - len(starts) - len(ends)
    tokens = np.full((len(texts), self.length), pieces.eos_id() if self.sticky_eos else 0, np.int32)
    for row, found in zip(tokens, pieces.encode(list(texts), num_threads=1)):
      found = starts + _kept(found, room, keep) + ends or [pieces.unk_id()]
      row[:len(found)] = found
    return tokens


def _kept(found, room, keep):
  """Of a text's pieces, those that there is room for."""
  if len(found) <= room:
    return found
  return found[:room] if keep is None else [found[i] for i in keep(len(found), room)]


def train_sentencepiece(texts: Iterable[str], path: str, pieces: int = 4096) -> int:
  """Trains a model whose pieces 0 to 3 are padding, unknown, begin and end, and writes it.

  Args:
    texts: as they are to be tokenized; put them in lower case if those will be.
    path: the file, by convention `NAME.model`.
    pieces: vocabulary; fewer are made of texts that have fewer to offer.

  Returns:
    The vocabulary.

  Raises:
    UserError: SentencePiece cannot make that many, or that few, or there are no texts.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=pieces, pad_id=0, unk_id=1,
        bos_id=2, eos_id=3, character_coverage=0.9999, hard_vocab_limit=False, num_threads=1,
        minloglevel=2)
  except RuntimeError as error:
    raise UserError(f"SentencePiece cannot train {pieces} pieces: {error}. Set another number of "
                    "pieces, or check that the source has texts.") from error
  with open(path, "wb") as f:
    f.write(model.getvalue())
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()


class ClipBpe:
  """OpenAI's byte-pair encoding for CLIP: 49,408 tokens in lower case; picklable.

  A text is <|startoftext|>, its tokens, <|endoftext|>, padding. Cut texts keep their end token, the
  largest number, which is where CLIP's text tower pools.

  HTML entities are resolved and runs of white space become one space, as published; the repair of
  wrongly decoded text (`ftfy`) is left out.

  Attributes:
    length: L.
    vocabulary: 49,408.

  Source: Radford et al. 2021; the merges are OpenAI's, see `assets/tokenizers/README.md`.
  """

  vocabulary = 49_408
  start, end = 49_406, 49_407

  def __init__(self, length: int = 77):
    if length < 3:
      raise UserError(f"length {length} leaves no room between start and end; at least 3.")
    self.length = length

  def __call__(self, texts: Sequence[str], keep: Keep | None = None) -> np.ndarray:
    """Texts -> int32 [len(texts), L]; `keep` says which pieces of long ones; else the first."""
    texts = [" ".join(html.unescape(html.unescape(text)).split()) for text in texts]
    tokens = np.zeros((len(texts), self.length), np.int32)
    for row, text in zip(tokens, texts):
      found = _clip_tokenizer().encode(text).ids
      found = [self.start, *_kept(found, self.length - 2, keep), self.end]
      row[:len(found)] = found
    return tokens


def clip_merges() -> list[tuple[str, str]]:
  """The 48,894 merges of CLIP's vocabulary, most frequent first."""
  with gzip.open(_FOLDER / "clip_merges.txt.gz", "rt", encoding="utf-8") as f:
    pairs = (line.split() for line in f)
    return [(left, right) for left, right in pairs]


def clip_vocabulary() -> dict[str, int]:
  """Token numbers of CLIP's pieces: 256 bytes, the same at a word's end, merges, start and end."""
  # A byte is written as itself where it prints, otherwise as a character from 256 on: GPT-2's way.
  printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printing]
  letters = [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(others))]
  pieces = (letters + [letter + "</w>" for letter in letters]
            + [a + b for a, b in clip_merges()] + ["<|startoftext|>", "<|endoftext|>"])
  return {piece: i for i, piece in enumerate(pieces)}


@functools.cache
def _clip_tokenizer():
  """One for the process, made at the first text: a `ClipBpe` is cheap to make and to send."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      clip_vocabulary(), clip_merges(), end_of_word_suffix="</w>"))
  tokenizer.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()])
  words = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
      tokenizers.pre_tokenizers.Split(words, behavior="removed", invert=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
  return tokenizer
