"""Tokenizers of published checkpoints: a tokenizer.json, optionally after cleaning the text."""

from collections.abc import Sequence
import contextlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tokenizers

from clip_jax.cli.values import ContextLength, FilePath, NonNegativeInt, OneOf, PositiveInt, checked
from clip_jax.data.text_cleaning import CLEANERS
from clip_jax.data.untrusted import MAX_JSON, read_regular
from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer


@checked
class TokenizerJson:
  """Tokenizes with a tokenizer.json, including its special tokens; picklable.

  Attributes:
    context_length: L.
    vocab_size: number of tokens.
  """

  def __init__(
    self,
    path: FilePath,
    context_length: ContextLength = 64,
    padding: NonNegativeInt = 0,
    blank: NonNegativeInt | None = None,
  ):
    """Loads the file.

    Args:
      path: a tokenizer.json as written by Hugging Face's libraries.
      context_length: L, the context length. Longer texts are truncated but keep their end token.
      padding: id of the token that pads shorter texts.
      blank: id of a token that is replaced by 0 after truncation, as CLIPA does with BERT's [SEP].

    Raises:
      UserError: there is no such file, or it is not a tokenizer.json.
    """
    self.context_length, self.padding, self.blank = context_length, padding, blank
    if not Path(path).is_file():
      raise UserError(f"No tokenizer at {path}. Expected the path of a tokenizer.json.")
    with _one_kind_of_error(f"{path} is not a tokenizer.json"):
      self._load(read_regular(path, MAX_JSON).decode("utf-8"))

  def _load(self, text):
    self._tokenizer = tokenizers.Tokenizer.from_str(text)
    self._tokenizer.enable_truncation(self.context_length)
    self._tokenizer.no_padding()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_tokenizer": self._tokenizer.to_str()}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._load(state["_tokenizer"])

  @property
  def vocab_size(self) -> int:
    """Vocabulary size: all token ids are smaller."""
    return self._tokenizer.get_vocab_size()

  @property
  def json(self) -> str:
    """The tokenizer, serialised as JSON."""
    return self._tokenizer.to_str()

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> int32 [len(texts), L]."""
    tokens = np.full((len(texts), self.context_length), self.padding, np.int32)
    with _one_kind_of_error("The tokenizer.json is damaged"):
      encoded = self._tokenizer.encode_batch(list(texts))
    for row, found in zip(tokens, encoded):
      row[: len(found.ids)] = found.ids
    return tokens if self.blank is None else np.where(tokens == self.blank, 0, tokens)


@contextlib.contextmanager
def _one_kind_of_error(message):
  """Turns errors of the library, which has no class for them, into `UserError`."""
  try:
    yield
  except Exception as error:
    raise UserError(f"{message}: {error!s:.300}") from error
  except BaseException as error:  # A panic of the library is not an Exception.
    if type(error).__name__ != "PanicException":
      raise
    raise UserError(f"{message}: {error!s:.300}") from error


@checked
class CleanedTokenizer:
  """Wraps a tokenizer and cleans texts first; `clean` is a name in `text_cleaning.CLEANERS`."""

  def __init__(self, tokenizer: Tokenizer, clean: Annotated[str, OneOf(CLEANERS)]):
    self.tokenizer, self.clean = tokenizer, clean
    self.context_length, self.vocab_size = tokenizer.context_length, tokenizer.vocab_size

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> int32 [len(texts), L]."""
    return self.tokenizer([CLEANERS[self.clean](text) for text in texts])


@checked
class MissingTokenizer:
  """Stands in for a missing tokenizer and raises an error when it is called."""

  def __init__(self, why: str, context_length: ContextLength, vocab_size: PositiveInt):
    self.why, self.context_length, self.vocab_size = why, context_length, vocab_size

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Raises UserError with the reason why there is no tokenizer."""
    raise UserError(self.why)
