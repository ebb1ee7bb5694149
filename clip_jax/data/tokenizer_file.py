"""Tokenizers that come with a checkpoint: a tokenizer.json, and how texts are cleaned before it."""

from collections.abc import Sequence
from pathlib import Path
import string
from typing import Any

import numpy as np
import tokenizers

from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer


class TokenizerFile:
  """Tokens by a tokenizer.json, special tokens as it says; picklable.

  Attributes:
    length: L.
    vocabulary: number of tokens.
  """

  def __init__(self, path: str, length: int = 64, padding: int = 0):
    """Loads the file.

    Args:
      path: a tokenizer.json, as Hugging Face's libraries write it.
      length: L, tokens a text. Longer ones are cut; the end token stays.
      padding: number of the token that shorter texts are filled up with.

    Raises:
      UserError: there is no such file, or it is none.
    """
    self.length, self.padding = length, padding
    if not Path(path).is_file():
      raise UserError(f"There is no tokenizer at {path}.")
    try:
      self._load(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # The library raises nothing more specific.
      raise UserError(f"{path} is not a tokenizer.json: {error}") from error

  def _load(self, text):
    self._tokenizer = tokenizers.Tokenizer.from_str(text)
    self._tokenizer.enable_truncation(self.length)
    self._tokenizer.no_padding()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_tokenizer": self._tokenizer.to_str()}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._load(state["_tokenizer"])

  @property
  def vocabulary(self) -> int:
    """Token numbers are below it."""
    return self._tokenizer.get_vocab_size()

  @property
  def json(self) -> str:
    """The tokenizer, as a file holds it."""
    return self._tokenizer.to_str()

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> int32 [len(texts), L]."""
    tokens = np.full((len(texts), self.length), self.padding, np.int32)
    for row, found in zip(tokens, self._tokenizer.encode_batch(list(texts))):
      row[:len(found.ids)] = found.ids
    return tokens


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
CLEANERS = {
    "lower": str.lower,
    # One space between words; then the same without punctuation, as big_vision and open_clip have
    # it, and as Hugging Face has it, where what an underscore joins stays joined.
    "whitespace": lambda text: " ".join(text.split()),
    "words": lambda text: " ".join(
        text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split()),
    "letters": lambda text: " ".join(text.translate(_NO_PUNCTUATION).lower().split()),
}


class Cleaned:
  """A tokenizer whose texts are cleaned first; `clean` is a name in `CLEANERS`."""

  def __init__(self, tokenizer: Tokenizer, clean: str):
    if clean not in CLEANERS:
      raise UserError(f"There is no way {clean!r} to clean texts; there are {', '.join(CLEANERS)}.")
    self.tokenizer, self.clean = tokenizer, clean
    self.length, self.vocabulary = tokenizer.length, tokenizer.vocabulary

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> int32 [len(texts), L]."""
    return self.tokenizer([CLEANERS[self.clean](text) for text in texts])


class NoTokenizer:
  """In the place of a tokenizer that a checkpoint did not bring; says so when it is needed."""

  def __init__(self, why: str, length: int, vocabulary: int):
    self.why, self.length, self.vocabulary = why, length, vocabulary

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Never anything."""
    raise UserError(self.why)
