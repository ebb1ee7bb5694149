"""Hashes of every record of a source: of its image, or of one of its fields; cached in files."""

from contextlib import closing
import hashlib
from typing import Any

import numpy as np

from clip_jax.cli.cache import caches
from clip_jax.cli.progress import Progress, log
from clip_jax.data.decode import UnreadableImage
from clip_jax.data.image_hash import BYTES, image_hash
from clip_jax.data.npz_file import read_npz
from clip_jax.data.read_ahead import map_ahead
from clip_jax.data.score_file import fingerprint
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.interfaces import Source

_THREADS, _AHEAD = 16, 1024
_MIN_CACHED = 500  # Records; hashing fewer takes less than a second.
_RECENT: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # For the other parts of the same source.
_MOST_RECENT = 4


def record_hashes(source: Source, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads every record of a source once and hashes it.

  The result is cached by the source's fingerprint, in memory and in the cache folder.

  Args:
    source: the records.
    kind: "image hash" for the perceptual hash, "image bytes" for a hash of the encoded bytes, or
      the name of a field for a hash of its value.

  Returns:
    (uint8 [n, w], bool [n]): the hashes, and which records have one. Those with an unreadable image
    or without a value have zeros.

  Raises:
    UserError: no record has the field.
  """
  function = {"image hash": _perceptual, "image bytes": _exact}.get(kind) or _of_field(kind)
  width = BYTES if kind == "image hash" else 16
  key = hashlib.sha256(f"{kind}\n{fingerprint(source)}\n{_probe(source, function)}".encode())
  name = key.hexdigest()[:16]
  if name not in _RECENT:
    while len(_RECENT) >= _MOST_RECENT:
      _RECENT.pop(next(iter(_RECENT)))
    _RECENT[name] = _read(source, function, width, caches() / "hashes" / f"{name}.npz")
  hashes, known = _RECENT[name]
  if not known.any() and function not in (_perceptual, _exact):
    raise UserError(
      f"by={kind!r}: no record of {type(source).__name__} has a field {kind!r} with a value; the "
      f'first has {", ".join(map(repr, source[0]))}. Set by to one of them, to "image hash", or '
      "to None."
    )
  return hashes, known


def _read(source, function, width, path):
  n = len(source)
  try:
    stored = read_npz(path)
    if stored["hashes"].shape == (n, width) and stored["known"].shape == (n,):
      return stored["hashes"].astype(np.uint8), stored["known"].astype(bool)
  except (OSError, ValueError, KeyError):  # Not cached yet, or damaged.
    pass
  hashes, known = np.zeros((n, width), np.uint8), np.zeros(n, bool)
  progress = Progress(n, log, "records hashed", last=False)
  one = lambda i: _try(source, function, i)
  with closing(map_ahead(one, range(n), threads=_THREADS, ahead=_AHEAD)) as found:
    for i, value in enumerate(found):
      if value is not None:
        hashes[i], known[i] = value, True
      progress.add(1)
  if n >= _MIN_CACHED:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with atomic_write(path, "wb") as f:
        np.savez(f, hashes=hashes, known=known)
    except OSError:  # The cache folder is not writable: hash the records again next time.
      pass
  return hashes, known


def _try(source, function, i):
  """Returns the hash of record i, or None if it has none."""
  try:
    return function(source[i])
  except UserError:
    raise
  except Exception:  # Readers and decoders raise many kinds of errors for damaged records.
    return None


def _probe(source, function):
  """Hashes of 64 records, because a source's fingerprint does not cover all fields."""
  probes = [_try(source, function, len(source) * k // 64) for k in range(64)]
  return [None if value is None else value.tolist() for value in probes]


def _perceptual(record):
  return image_hash(record["image"])


def _exact(record):
  image = record["image"]
  if isinstance(image, np.ndarray):
    image = repr(image.shape).encode() + image.tobytes()
  if not isinstance(image, bytes):
    raise UnreadableImage(f"Expected encoded bytes or pixels, not a {type(image).__name__}.")
  return _digest(image)


def _of_field(name):
  def hash_of(record: dict[str, Any]) -> np.ndarray | None:
    value = record.get(name)
    return None if value is None else _digest(repr(value).encode("utf-8", "surrogatepass"))

  return hash_of


def _digest(content):
  return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
