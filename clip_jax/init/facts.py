"""Measures what a recipe depends on: number of pairs, sizes of images, lengths of captions."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from clip_jax.data.decode import Picture, UnreadableImage
from clip_jax.errors import UserError
from clip_jax.interfaces import Source, Tokenizer
from clip_jax.study.starting_config import DataFacts

SAMPLE = 2000  # Records that are looked at.


def measure(source: Source) -> tuple[DataFacts, list[str]]:
  """Returns the facts of a source, and the captions of the records that were looked at.

  Args:
    source: records with "image" and "text".

  Raises:
    UserError: no record that was looked at has a text.
  """
  n = len(source)
  sides, texts, several = [], [], 0
  for i in np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int)):
    record = source[int(i)]
    own = record.get("text") or []
    own = [own] if isinstance(own, str) else list(own)
    several = max(several, len(own))
    texts += own
    try:
      picture = Picture(record["image"])
      sides.append(min(picture.height, picture.width))
    except UnreadableImage:
      continue
  if not texts or not sides:
    raise UserError(
      "The records have no readable images with captions. Check what clip-jax prepare dropped, and "
      "--image and --text."
    )
  counts = Counter(text.strip().lower() for text in texts)
  repeated = sum(count for count in counts.values() if count > 1) / len(texts)
  return DataFacts(n, int(np.median(sides)), several, repeated), texts


def context_length(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> int:
  """Returns a context length, a multiple of 8, that truncates at most 5% of the texts.

  Args:
    tokenizer: a tokenizer with a long context length.
    texts: captions.
    most: limit of the result.
  """
  lengths = (tokenizer(texts) != 0).sum(1)
  return int(min(most, max(8, 8 * np.ceil(np.quantile(lengths, 0.95) / 8))))
