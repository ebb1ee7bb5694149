"""Embeds the images of a folder and caches the embeddings."""

from collections.abc import Callable
import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from clip_jax.cli.cache import caches
from clip_jax.cli.formatting import printable
from clip_jax.cli.progress import Progress
from clip_jax.data.decode import UnreadableImage
from clip_jax.data.npz_file import read_npz
from clip_jax.data.read_ahead import batched, map_ahead
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.pictures import Pictures, open_pictures

_BLOCK = 1024  # Images between two saves, the most that an interrupted run has to recompute.


class ImageIndex:
  """The embedded images of a folder.

  Attributes:
    pictures: all pictures of the folder.
    names: names of those that can be read; paths of files are relative to the folder, and sorted.
    z: embeddings, float32 [n, E], of unit length.
    unreadable: names of those that cannot be read.
  """

  def __init__(self, pictures: Pictures, names: list[str], z: np.ndarray, unreadable: list[str]):
    self.pictures, self.names, self.z, self.unreadable = pictures, names, z, unreadable

  def nearest(self, z: np.ndarray, top: int) -> list[tuple[int, float]]:
    """Returns (index, cosine) of the `top` images nearest to float32 [E], best first."""
    scores = self.z @ z
    best = np.argsort(-scores, kind="stable")[:top]
    return [(int(k), float(scores[k])) for k in best]

  def path(self, k: int) -> str:
    """Returns the path of an image, or what to call one that is not a file."""
    name = self.names[k]
    path = self.pictures.folder / name
    return str(path) if path.is_file() else self.pictures.title(name)


def build_index(
  embedder: Embedder, fingerprint: str, folder: Path | str, say: Callable[[str], None]
) -> ImageIndex:
  """Returns the index of a folder, embedding only images that are new or changed.

  Embeddings are cached under `cli.cache.caches()` in one file per folder and model. While images
  are embedded, every `_BLOCK` of them are saved in a file of their own, which the next call reads
  if this one is interrupted. The time is linear in the number of images.

  Args:
    embedder: the model.
    fingerprint: hash of the model, part of the cache key.
    folder: searched recursively for images, except for hidden files and folders; or a folder that
      `prepare` wrote.
    say: receives progress messages.

  Raises:
    UserError: there is no such folder, or it has no readable images.
  """
  pictures = open_pictures(folder)
  folder, there = pictures.folder, pictures.stamps
  name = hashlib.sha256(f"{folder}\n{fingerprint}".encode()).hexdigest()[:16]
  file = caches() / "indexes" / f"{name}.npz"
  parts = sorted(file.parent.glob(f"{file.stem}-part*.npz"))
  known = _read(file)
  for part in parts:
    known.update(_read(part))
  new = [name for name, stamp in there.items() if known.get(name, (None,))[0] != stamp]
  known = {name: known[name] for name in there if name in known}
  progress = Progress(len(new), say, "images")
  for start in range(0, len(new), _BLOCK):
    block = new[start : start + _BLOCK]
    found = {name: (there[name], z) for name, z in zip(block, _embedded(embedder, pictures, block))}
    known.update(found)
    if len(new) > _BLOCK:
      parts.append(file.with_name(f"{file.stem}-part{os.getpid()}-{start}.npz"))
      _write(parts[-1], found)
    progress.add(len(block), damaged=sum(z is None for _, z in found.values()))
  if new or parts:
    _write(file, known)
    for part in parts:  # Another process may have deleted it already.
      part.unlink(missing_ok=True)
  good = [name for name in there if known[name][1] is not None]
  unreadable = [name for name in there if known[name][1] is None]
  if not good:
    raise UserError(
      f"None of the {len(there):,} images in {folder} can be read: "
      f"{', '.join(map(printable, unreadable[:5]))}{', ...' if len(unreadable) > 5 else ''}."
    )
  return ImageIndex(pictures, good, np.stack([known[name][1] for name in good]), unreadable)


def _embedded(embedder, pictures, names):
  """Returns an embedding for each image, None for those that cannot be read."""

  def read(name):
    try:
      return embedder.preprocess(pictures.read(name))
    except (OSError, UnreadableImage):
      return None

  found = []
  with contextlib.closing(
    map_ahead(read, names, threads=embedder.threads, ahead=embedder.batch_size)
  ) as made:
    for images in batched(made, embedder.batch_size):
      readable = [image for image in images if image is not None]
      z = iter(embedder.encode_share(np.stack(readable))[1] if readable else ())
      found += [None if image is None else next(z) for image in images]
  return found


def _read(file: Path) -> dict[str, tuple]:
  """Reads (stamp, embedding or None) by name as written by `_write`; {} if the file is damaged."""
  try:
    stored = read_npz(file, lambda _: ("names", "stamps", "z"))
    names, stamps, z = stored["names"], stored["stamps"], stored["z"]
    if not (names.dtype.kind == "U" and stamps.dtype == np.int64 and z.dtype == np.float32):
      return {}
    if not (names.shape == z.shape[:1] and stamps.shape == (len(names), 2) and z.ndim == 2):
      return {}
    return {
      str(name): (tuple(map(int, stamp)), None if np.isnan(row[0]) else row)
      for name, stamp, row in zip(names, stamps, z)
    }
  except (OSError, ValueError, IndexError):
    return {}


def _write(file: Path, known: dict[str, tuple]) -> None:
  """Writes the cache file atomically; a row of NaN stands for an unreadable image."""
  file.parent.mkdir(parents=True, exist_ok=True)
  width = next((len(z) for _, z in known.values() if z is not None), 1)
  missing = np.full(width, np.nan, np.float32)
  with atomic_write(file, "wb") as f:
    np.savez(
      f,
      names=np.array(list(known)),
      stamps=np.array([stamp for stamp, _ in known.values()], np.int64),
      z=np.stack([missing if z is None else z for _, z in known.values()]),
    )
