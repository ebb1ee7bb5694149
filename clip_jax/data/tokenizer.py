"""Tokenizers: texts to token ids of a fixed context length, padded with 0."""

from collections.abc import Callable, Iterable, Sequence
import functools
import gzip
import io
import pathlib
from typing import Annotated, Any

import numpy as np
import sentencepiece
import tokenizers

from clip_jax.cli.values import ContextLength, FilePath, Range, checked
from clip_jax.data.text_cleaning import CLEANERS
from clip_jax.data.untrusted import MAX_JSON, read_regular
from clip_jax.errors import UserError
from clip_jax.files import write_atomically

# (n, max_tokens) -> indices of the pieces to keep, for a text of n > max_tokens pieces.
Keep = Callable[[int, int], Sequence[int]]

_FOLDER = pathlib.Path(__file__).parent / "assets" / "tokenizers"
SHIPPED = ("openclipart-1k", "openclipart-4k")


@checked
class SentencePiece:
  """Tokenizes with a SentencePiece model; picklable.

  A text without tokens becomes one unknown token, because mean pooling is undefined for a row that
  is all padding.

  Attributes:
    context_length: L.
    vocab_size: number of pieces.
  """

  def __init__(
    self,
    model: FilePath = "openclipart-4k",
    context_length: ContextLength = 16,
    lower: bool = True,
    bos: bool = False,
    eos: bool = True,
    sticky_eos: bool = False,
  ):
    """Loads the model.

    Args:
      model: "openclipart-4k" or "openclipart-1k", which come with the package (4,096 and 1,024
        pieces; with fewer pieces, each one occurs in more captions), or the path of a model with
        padding as piece 0, as `train_sentencepiece` makes.
      context_length: L, the context length. Longer texts are truncated but keep their end token.
      lower: whether to convert texts to lower case first.
      bos: whether to prepend a begin token.
      eos: whether to append an end token. Towers that pool "last" or "eot" need it.
      sticky_eos: whether to pad with the end token instead of 0, so that the last token is always
        an end token, as in big_vision.

    Raises:
      UserError: there is no such model, it lacks a required piece, or the length is too small.
    """
    path = _FOLDER / f"{model}.model" if model in SHIPPED else pathlib.Path(model)
    if not path.is_file():
      raise UserError(
        f"No SentencePiece model at {model}, and it is not a model of the package "
        f"({', '.join(SHIPPED)}). Train one with python -m clip_jax.prepare."
      )
    if context_length < 1 + bos + eos:
      raise UserError(
        f"context_length={context_length} leaves no room for text; set at least {1 + bos + eos}."
      )
    self.context_length, self.lower = context_length, lower
    self.bos, self.eos, self.sticky_eos = bos, eos, sticky_eos
    self._proto = read_regular(path, MAX_JSON)
    try:
      self._load()
    except RuntimeError as error:
      raise UserError(f"{path} is not a SentencePiece model: {error}") from error
    pieces = self._processor
    for name, wanted, number in (
      ("begin", bos, pieces.bos_id()),
      ("end", eos or sticky_eos, pieces.eos_id()),
    ):
      if wanted and number < 0:
        raise UserError(
          f"The model {model} has no {name} piece. Set {name[0]}os=False, or train "
          "a model with python -m clip_jax.prepare."
        )
    if 0 in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()):
      raise UserError(
        f"Piece 0 of the model {model} is {pieces.id_to_piece(0)!r}, but must be "
        "padding. Train with pad_id=0, as python -m clip_jax.prepare does."
      )

  def _load(self):
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._proto)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_processor"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._load()

  @property
  def vocab_size(self) -> int:
    """Vocabulary size: all token ids are smaller."""
    return self._processor.vocab_size()

  @property
  def eos_id(self) -> int:
    """Id of the end token, -1 if the model has none."""
    return self._processor.eos_id()

  @property
  def model(self) -> bytes:
    """The serialised SentencePiece model."""
    return self._proto

  def __call__(self, texts: Sequence[str], keep: Keep | None = None) -> np.ndarray:
    """Texts -> int32 [len(texts), L]; long texts keep the pieces `keep` picks, or the first."""
    pieces = self._processor
    if self.lower:
      texts = [text.lower() for text in texts]
    starts = [pieces.bos_id()] if self.bos else []
    ends = [pieces.eos_id()] if self.eos else []
    max_tokens = self.context_length - len(starts) - len(ends)
    tokens = np.full(
      (len(texts), self.context_length), pieces.eos_id() if self.sticky_eos else 0, np.int32
    )
    for row, text in zip(tokens, texts):
      # Not a list of texts: for each list, the library starts a thread, which takes four times as
      # long as the text.
      found = pieces.encode(text)
      found = starts + _truncate(found, max_tokens, keep) + ends or [pieces.unk_id()]
      row[: len(found)] = found
    return tokens

  def decode(self, tokens: np.ndarray) -> list[str]:
    """Tokens, int [B, L] -> texts; each ends before its first padding or end token."""
    pieces = self._processor
    begin, ends = pieces.bos_id(), (0, pieces.eos_id())
    return [pieces.decode(_until(row, begin, ends)) for row in np.asarray(tokens).tolist()]


def _until(row: list[int], begin: int, ends: tuple[int, int]) -> list[int]:
  """Returns the ids of a row without a begin token, up to the first end."""
  end = next((i for i, token in enumerate(row) if token in ends), len(row))
  return row[int(row[:1] == [begin]) : end]


def _truncate(found, max_tokens, keep):
  """Returns at most `max_tokens` of a text's pieces, chosen by `keep` or else the first."""
  if len(found) <= max_tokens:
    return found
  return found[:max_tokens] if keep is None else [found[i] for i in keep(len(found), max_tokens)]


def train_sentencepiece(texts: Iterable[str], path: str, pieces: int = 4096) -> int:
  """Trains and writes a model with padding, unknown, begin and end as pieces 0 to 3.

  Args:
    texts: training texts; convert them to lower case if the tokenizer will.
    path: the file, by convention `NAME.model`.
    pieces: requested vocabulary size; small sets of texts yield fewer pieces.

  Returns:
    The vocabulary size.

  Raises:
    UserError: SentencePiece cannot train this number of pieces, or there are no texts.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=pieces,
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      character_coverage=0.9999,
      hard_vocab_limit=False,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f"SentencePiece cannot train {pieces} pieces: {error}. Set another number of "
      "pieces, and check that the source has texts."
    ) from error
  write_atomically(path, model.getvalue())
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()


@checked
class ClipBpe:
  """OpenAI's byte-pair encoding for CLIP: 49,408 lower-case tokens; picklable.

  A row is <|startoftext|>, the text's tokens, <|endoftext|>, padding. Truncated texts keep their
  end token. It has the largest id, and CLIP's text tower pools at its position.

  As published, texts are repaired with ftfy, HTML entities are unescaped and white space is
  collapsed.

  Attributes:
    context_length: L.
    vocab_size: 49,408.

  Source: Radford et al. 2021; the merges are OpenAI's, see `assets/tokenizers/README.md`.
  """

  vocab_size = 49_408
  bos_id, eos_id = 49_406, 49_407

  def __init__(self, context_length: Annotated[int, Range(3, 2**20)] = 77, fix_text: bool = True):
    """Sets the options.

    Args:
      context_length: L, the context length. Longer texts are truncated but keep their end token.
      fix_text: whether to repair texts as OpenAI's and open_clip's code does. If False, only their
        case and white space are normalised, as in Hugging Face's CLIPTokenizer.
    """
    self.context_length, self.fix_text = context_length, fix_text

  def __call__(self, texts: Sequence[str], keep: Keep | None = None) -> np.ndarray:
    """Texts -> int32 [len(texts), L]; long texts keep the pieces `keep` picks, or the first."""
    if self.fix_text:
      texts = [CLEANERS["open_clip_lower"](text) for text in texts]
    tokens = np.zeros((len(texts), self.context_length), np.int32)
    for row, text in zip(tokens, texts):
      found = _clip_tokenizer(self.fix_text).encode(text).ids
      found = [self.bos_id, *_truncate(found, self.context_length - 2, keep), self.eos_id]
      row[: len(found)] = found
    return tokens

  def decode(self, tokens: np.ndarray) -> list[str]:
    """Tokens, int [B, L] -> texts; each ends before its first padding or end token.

    Id 0 is also an exclamation mark, so a text ends before its first one.
    """
    pieces = {i: piece for piece, i in clip_vocabulary().items()}
    ends = (0, self.eos_id)
    words = (
      "".join(pieces[i] for i in _until(row, self.bos_id, ends))
      for row in np.asarray(tokens).tolist()
    )
    letter = _bytes_of_letters()
    text = lambda word: bytes(letter[c] for c in word).decode("utf-8", errors="replace")
    return [" ".join(map(text, filter(None, word.split("</w>")))) for word in words]


def clip_merges() -> list[tuple[str, str]]:
  """Returns the 48,894 merges of CLIP's vocabulary, most frequent first."""
  with gzip.open(_FOLDER / "clip_merges.txt.gz", "rt", encoding="utf-8") as f:
    pairs = (line.split() for line in f)
    return [(left, right) for left, right in pairs]


def clip_vocabulary() -> dict[str, int]:
  """Returns CLIP's pieces with their ids: 256 bytes, the same ending a word, merges, specials."""
  letters = [*_bytes_of_letters()]
  pieces = (
    letters
    + [letter + "</w>" for letter in letters]
    + [a + b for a, b in clip_merges()]
    + ["<|startoftext|>", "<|endoftext|>"]
  )
  return {piece: i for i, piece in enumerate(pieces)}


def _bytes_of_letters() -> dict[str, int]:
  """Returns the byte that each letter of CLIP's pieces stands for.

  As in GPT-2, printable bytes stand for themselves and the others for characters from 256 on.
  """
  printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printing]
  return {
    **{chr(byte): byte for byte in printing},
    **{chr(256 + i): byte for i, byte in enumerate(others)},
  }


@functools.cache
def _clip_tokenizer(fixed: bool) -> tokenizers.Tokenizer:
  """Builds a tokenizer once per process, so that `ClipBpe` is cheap to construct and pickle.

  Args:
    fixed: whether the texts it receives have been repaired and are in lower case.
  """
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(clip_vocabulary(), clip_merges(), end_of_word_suffix="</w>")
  )
  if not fixed:
    rules = tokenizers.normalizers
    spaces = rules.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = rules.Sequence([rules.NFC(), spaces, rules.Lowercase()])
  # The published pattern ignores the case, so that a long s, U+017F, counts as an s.
  s = r"'[s\x{17f}]" if fixed else "'s"
  words = tokenizers.Regex(s + r"|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(words, behavior="removed", invert=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
  return tokenizer
