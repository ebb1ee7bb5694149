"""Embedding cache that evaluators share, so that hosts together embed each image and text once."""

from collections.abc import Callable, Sequence
from contextlib import closing
import dataclasses
import hashlib
from itertools import islice
import pickle
import time
from typing import Annotated, Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from clip_jax.cli.formatting import duration, number
from clip_jax.cli.progress import Progress
from clip_jax.cli.values import OneOf
from clip_jax.data.crops import Resize
from clip_jax.data.decode import UnreadableImage
from clip_jax.data.read_ahead import map_ahead
from clip_jax.errors import UserError
from clip_jax.interfaces import Embedder, Source

# Values of an evaluator's `resize`, which may also be None for the model's own preprocessing; see
# `data.crops.Resize`.
RESIZES: dict[str, dict[str, Any]] = {
  "squash": dict(resize_mode="squash"),  # Changes the aspect ratio.
  "crop": dict(resize_mode="crop"),  # Resizes the shorter side, crops the centre.
  "central_crop": dict(resize_mode="crop", center_crop=0.875),  # Used by the study.
}
Resizing = Annotated[str, OneOf(RESIZES)]
UNREADABLE_SHARE = 0.01  # With a larger fraction of unreadable images, evaluation stops.
CHUNK = 1024  # Minimum number of texts passed to the embedder at a time.


@dataclasses.dataclass(frozen=True)
class ImageEmbeddings:
  """Embedded images of some records of a source, in the order of the requested indices.

  Attributes:
    z: embeddings of unit length, float32 [n, E]; NaN for unreadable images.
    features: outputs of the image tower before the projection, float32 [n, D]; NaN as in `z`.
    records: the requested fields of each record.
    unreadable: indices of the records with unreadable images.
    resize: description of how the images were resized.
  """

  z: np.ndarray
  features: np.ndarray
  records: list[dict[str, Any]]
  unreadable: list[int]
  resize: str


class EmbeddingCache:
  """An embedder with a cache of the images and texts it has embedded.

  Images are cached by their bytes and preprocessing, so that the ImageNet images used by a
  zero-shot evaluator, a probe and ReaL's labels are embedded once. The class implements `Embedder`,
  for evaluators that do not need the cache.

  Attributes:
    embedder: the model.
    embedded: number of images embedded so far.
    seconds: time spent embedding them, including reading and decoding.
  """

  def __init__(self, embedder: Embedder, say: Callable[[str], None] | None = None):
    """Creates an empty cache.

    Args:
      embedder: the model.
      say: receives lines that report progress, if given.
    """
    self.embedder = embedder
    self.embedded, self.seconds = 0, 0.0
    self._say = say if jax.process_index() == 0 else None
    self._tables, self._read, self._text = {}, {}, {}

  @classmethod
  def of(cls, embedder: "Embedder | EmbeddingCache") -> "EmbeddingCache":
    """Returns `embedder` itself if it has a cache, otherwise wraps it."""
    return embedder if isinstance(embedder, cls) else cls(embedder)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.embedder, name)

  def encode_image(self, images: Any) -> np.ndarray:
    """Calls the embedder's `encode_image`, without caching."""
    return self.embedder.encode_image(images)

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Calls the embedder's `encode_text`, without caching."""
    return self.embedder.encode_text(texts)

  def images(
    self, source: Source, at: np.ndarray, *, fields: tuple[str, ...] = (), resize: str | None = None
  ) -> ImageEmbeddings:
    """Embeds the images of the records at `at`; each host reads and preprocesses its share.

    Args:
      source: records with an "image" and `fields`.
      at: indices of the records, int64 [n], at least one.
      fields: fields of the records to return.
      resize: a name in `RESIZES`; None for the model's own preprocessing.

    Raises:
      UserError: a record cannot be read or lacks a field, or more than `UNREADABLE_SHARE` of the
        images cannot be read.
    """
    prepare, description = preprocessing(self.embedder, resize)
    table = self._tables.setdefault(description, {})
    key = (id(source), np.asarray(at).tobytes(), tuple(fields), description)
    if key not in self._read:
      begun = time.perf_counter()
      # Keep a reference to the source, so that its id is not reused.
      self._read[key] = (source, *self._embed(source, at, fields, prepare, table))
      self.seconds += time.perf_counter() - begun
    _, digests, records = self._read[key]
    unreadable = [int(at[k]) for k, digest in enumerate(digests) if digest is None]
    if len(unreadable) == len(digests):
      raise UserError(
        f"None of the {len(digests):,} images can be read. Check the source's "
        '"image" field; expected encoded bytes or uint8 [H, W, 3].'
      )
    known = next(table[digest] for digest in digests if digest is not None)
    nothing = tuple(np.full_like(x, np.nan) for x in known)
    features, z = zip(*(nothing if digest is None else table[digest] for digest in digests))
    return ImageEmbeddings(np.stack(z), np.stack(features), records, unreadable, description)

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts, float32 [n, E]; each distinct text once, so that equal texts tie exactly."""
    new = [text for text in dict.fromkeys(texts) if text not in self._text]
    chunk = max(CHUNK, getattr(self.embedder, "batch_size", 1))
    progress = Progress(len(new), self._say, "texts", last=False) if self._say else None
    for start in range(0, len(new), chunk):
      part = new[start : start + chunk]
      self._text.update(zip(part, np.asarray(self.embedder.encode_text(part), np.float32)))
      if progress:
        progress.add(len(part))
    return np.stack([self._text[text] for text in texts])

  def speed(self) -> str:
    """Describes how many images were embedded and how fast."""
    return (
      f"{self.embedded:,} images embedded in {duration(self.seconds)}, "
      f"{number(self.embedded / max(self.seconds, 1e-9))} images/s"
    )

  def _embed(self, source, at, fields, prepare, table):
    """Embeds the records' images into `table`.

    Returns:
      Digest of each image, None if it is unreadable; and the requested fields of each record.
    """
    hosts, host = jax.process_count(), jax.process_index()
    size = getattr(self.embedder, "batch_size", CHUNK)
    batches = [np.array_split(at[k : k + size], hosts) for k in range(0, len(at), size)]
    progress = Progress(len(at), self._say, "images", last=False) if self._say else None
    digests, records, damaged = [], [], []
    reading = map_ahead(
      lambda place: _read_or_problem(source, int(place), fields, prepare, table),
      np.concatenate([batch[host] for batch in batches]),
      threads=getattr(self.embedder, "threads", 1),
      ahead=len(batches[0][host]),
    )
    with closing(reading):
      for batch in batches:
        mine = list(islice(reading, len(batch[host])))
        told = _gathered([dataclasses.replace(r, pixels=np.shape(r.pixels)) for r in mine])
        everyone = [r for part in told for r in part]
        wrong = next((r.problem for r in everyone if r.problem), None)
        if wrong:
          raise UserError(wrong)
        self._add(mine, told, table)
        bad = [int(p) for p, r in zip(np.concatenate(batch), everyone) if r.digest is None]
        damaged += bad
        if len(damaged) > UNREADABLE_SHARE * len(at):
          raise UserError(_too_many(damaged, len(digests) + len(everyone), len(at)))
        digests += [r.digest for r in everyone]
        records += [r.values for r in everyone]
        if progress:
          progress.add(len(everyone), len(bad))
    if damaged and self._say:
      self._say(
        f"{len(damaged):,} of {len(at):,} images cannot be read and count as wrong: "
        f"records {', '.join(map(str, damaged[:5]))}"
        f"{', ...' if len(damaged) > 5 else ''} of the source."
      )
    return digests, records

  def _add(self, mine, told, table):
    """Embeds the images of a batch that are not in `table` and adds them to it, on every host."""
    seen, new = {None}, []
    for part in told:
      first = {}
      for j, r in enumerate(part):
        if r.digest not in seen and r.digest not in table:
          first.setdefault(r.digest, j)
      new.append(list(first.values()))
      seen.update(first)
    most = max(map(len, new))
    if not most:
      return
    own = [mine[j].pixels for j in new[jax.process_index()]]
    if hasattr(self.embedder, "encode_share"):
      shape = next(part[js[0]].pixels for part, js in zip(told, new) if js)
      # encode_share needs the same number of images on every host; the padding is discarded below.
      own += [np.zeros(shape, np.uint8)] * (most - len(own))
      features, z = self.embedder.encode_share(np.stack(own))
    else:  # An embedder without multi-host support.
      features = z = np.asarray(self.embedder.encode_image(own), np.float32)
    for h, (part, js) in enumerate(zip(told, new)):
      for k, j in enumerate(js):
        table[part[j].digest] = features[h * most + k], z[h * most + k]
    self.embedded += sum(map(len, new))


def preprocessing(embedder: Embedder, resize: str | None) -> tuple[Callable[[Any], Any], str]:
  """Returns the function that preprocesses an image for the model, and a description of it."""
  prepare = getattr(embedder, "preprocess", None)
  if prepare is None:  # The embedder preprocesses images itself.
    return lambda image: image, "the embedder's own"
  if resize is not None:
    model = embedder.model  # type: ignore[attr-defined]  # Embedders with `preprocess` have it.
    prepare = Resize(model.image.image_size, **RESIZES[resize])
  if not isinstance(prepare, Resize):
    return prepare, f"the model's own, {type(prepare).__name__}"
  return prepare, (
    f"{prepare.resize_mode} to {prepare.size[0]} x {prepare.size[1]}"
    + (f", central {prepare.center_crop:g}" if prepare.center_crop < 1 else "")
  )


@dataclasses.dataclass(frozen=True)
class _Read:
  """A record that one host has read.

  Attributes:
    digest: digest of the image; None if it is unreadable.
    values: the requested fields.
    pixels: the preprocessed image; None if it is already cached. Hosts exchange only its shape.
    problem: error message if the whole record is unreadable or lacks a field.
  """

  digest: bytes | None
  values: dict[str, Any]
  pixels: Any
  problem: str | None = None


def _read_or_problem(source, place, fields, prepare, table):
  """Reads a record; a problem is returned instead of raised, so that every host raises it."""
  try:
    return _read_one(source, place, fields, prepare, table)
  except UserError as error:
    problem = str(error)
  except (OSError, ValueError) as error:
    problem = (
      f"Record {place} cannot be read: {error!r}. Check the source, {type(source).__name__}."
    )
  return _Read(None, {}, None, problem)


def _read_one(source, place, fields, prepare, table):
  record = source[place]
  for name in ("image", *fields):
    if name not in record:
      raise UserError(
        f"Record {place} has no field {name!r}; it has "
        f"{', '.join(map(repr, record))}. Choose one of these or another source."
      )
  image, values = record["image"], {name: record[name] for name in fields}
  encoded = image if isinstance(image, bytes) else pickle.dumps(image)
  digest = hashlib.blake2b(encoded, digest_size=16).digest()
  if digest in table:
    return _Read(digest, values, None)
  try:
    return _Read(digest, values, prepare(image))
  except UnreadableImage:
    return _Read(None, values, None)


def _too_many(damaged, seen, total):
  first = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
  return (
    f"{len(damaged):,} of the first {seen:,} images cannot be read (records {first} of the "
    f"source) and would count as wrong; at most {UNREADABLE_SHARE:.0%} of the {total:,} may "
    "be unreadable. Repair these images, or remove them from the source."
  )


def _gathered(mine: list) -> list[list]:
  """Gathers the lists of all hosts."""
  if jax.process_count() == 1:
    return [mine]
  data = np.frombuffer(pickle.dumps(mine), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int64(len(data)))).ravel()
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]
