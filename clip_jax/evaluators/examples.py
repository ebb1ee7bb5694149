"""The records that an evaluator asks about, and their embeddings; shared by the evaluators."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.data.decode import UnreadableImage, decode
from clip_jax.errors import UserError
from clip_jax.interfaces import Embedder, Source

# Scores this close count as equal. One dot product computed in two places of a blocked matrix
# product differs by about 1e-7, and without the margin that noise would decide between equals.
TIE = 1e-6

CHUNK = 1024  # Records held, and rows asked of the embedder, at a time.


def places(source: Source, limit: int | None) -> np.ndarray:
  """Places of the records to ask about, ascending: all, or `limit` spread evenly over the source.

  Evenly, not the first ones, because sources are often sorted by class.

  Raises:
    UserError: `limit` is below 1, or the source is empty.
  """
  if limit is not None and limit < 1:
    raise UserError(f"limit={limit}; expected at least 1 record, or None for all of them.")
  if not len(source):
    raise UserError(
        f"{type(source).__name__} has no records, so there is nothing to evaluate. Check the split "
        "or the path that it is made from.")
  count = len(source) if limit is None else min(limit, len(source))
  return np.arange(count) * len(source) // count


def chunks(source: Source, at: np.ndarray) -> Iterator[list[tuple[int, dict]]]:
  """(place, record) of the records at these places, a chunk at a time."""
  for start in range(0, len(at), CHUNK):
    yield [(int(i), source[int(i)]) for i in at[start:start + CHUNK]]


def field(record: dict[str, Any], name: str, place: int) -> Any:
  """`record[name]`.

  Raises:
    UserError: the record has no such field; says which it has.
  """
  if name not in record:
    raise UserError(
        f"Record {place} has no field {name!r}; it has {', '.join(map(repr, record))}. Choose one "
        "of these, or give the evaluator another source.")
  return record[name]


def image_embeddings(embedder: Embedder, records: list[tuple[int, dict]]) -> np.ndarray:
  """float32 [n, E] of one chunk.

  Raises:
    UserError: images that cannot be read. They are not left out, which would change the question.
  """
  images = [field(record, "image", place) for place, record in records]
  try:
    return np.asarray(embedder.encode_image(images), np.float32)
  except UnreadableImage as error:
    damaged = [place for (place, _), image in zip(records, images) if not _readable(image)]
    raise UserError(
        f"Images that cannot be read, at records {', '.join(map(str, damaged[:5]))} "
        f"({len(damaged)} in this part of the source): {error}. Repair them or leave them out of "
        "the source.") from error


def _readable(image):
  try:
    decode(image)
  except UnreadableImage:
    return False
  return True


def text_embeddings(embedder: Embedder, texts: list[str]) -> np.ndarray:
  """float32 [len(texts), E]; each distinct text is embedded once, so equal ones stay equal."""
  distinct = list(dict.fromkeys(texts))
  z = np.concatenate([np.asarray(embedder.encode_text(distinct[start:start + CHUNK]), np.float32)
                      for start in range(0, len(distinct), CHUNK)])
  row = {text: i for i, text in enumerate(distinct)}
  return z[[row[text] for text in texts]]
