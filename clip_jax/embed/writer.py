"""Computes the embeddings of a source and writes them shard by shard."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.cli.progress import Progress
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.decode import Picture, UnreadableImage
from clip_jax.data.embedding_store import (
  FORMAT,
  MANIFEST,
  file_checksum,
  read_manifest,
  view_rng,
  write_manifest,
  write_shard,
)
from clip_jax.data.read_ahead import map_ahead
from clip_jax.data.score_file import fingerprint
from clip_jax.errors import UserError
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.similarity import model_fingerprint
from clip_jax.interfaces import Source

WHAT = ("features", "embeddings")


def write_embeddings(
  embedder: Embedder,
  source: Source,
  out: Path,
  *,
  model: str,
  what: Collection[str] = WHAT,
  views: int = 1,
  scale: float | None = None,
  captions: int = 4,
  seed: int = 0,
  shard_size: int = 4096,
) -> int:
  """Writes the embeddings of all records; a rerun continues after the last whole shard.

  Args:
    embedder: the model.
    source: the records.
    out: the folder, created if missing.
    model: where the model is from, for the manifest.
    what: "features" of the towers, "embeddings" in the shared space, or both.
    views: number of views of each image.
    scale: the views are random crops of at least this share of the area; None for the model's own
      preprocessing, of which there is one view.
    captions: texts of a record that are embedded, at most.
    seed: seed of the views.
    shard_size: records in a file.

  Returns:
    The number of records whose image cannot be read.

  Raises:
    UserError: the folder holds other embeddings.
  """
  if views > 1 and scale is None:
    raise UserError(f"{views} views would all be the same. Set --scale=0.9 for random crops.")
  towers: Any = embedder.model
  manifest = {
    "format": FORMAT,
    "records": len(source),
    "views": views,
    "captions": captions,
    "seed": seed,
    "scale": scale,
    "source_fingerprint": fingerprint(source),
    "model": {
      "from": model,
      "fingerprint": model_fingerprint(embedder.model),
      "image_tower": model_fingerprint(towers.image),
      "text_tower": model_fingerprint(towers.text),
      "scale": embedder.scale,
    },
  }
  out.mkdir(parents=True, exist_ok=True)
  shards = _done(out, manifest)
  start, unreadable = sum(shard["records"] for shard in shards), 0
  progress = Progress(len(source) - start, print, "records")
  prepare = _prepare(embedder, source, views=views, scale=scale, captions=captions, seed=seed)
  while start < len(source):
    stop = min(start + shard_size, len(source))
    found = _shard(embedder, prepare, range(start, stop), what, captions)
    unreadable += int((found["texts"] < 0).sum())
    shards.append(write_shard(out, len(shards), found))
    write_manifest(out, {**manifest, "shards": shards})
    progress.add(stop - start, int((found["texts"] < 0).sum()))
    start = stop
  return unreadable


def _done(out, manifest):
  """Returns the shards that are there already."""
  if not (out / MANIFEST).is_file():
    return []
  found = read_manifest(out)
  shards = list(found.pop("shards"))
  differ = [name for name, value in manifest.items() if found.get(name) != value]
  if differ:
    raise UserError(
      f"{out} holds other embeddings: {', '.join(differ)} differ. Choose another --out."
    )
  whole = []
  for shard in shards:
    file = out / shard["file"]
    if not file.is_file() or file_checksum(file) != shard["crc32"]:
      break
    whole.append(shard)
  return whole


def _prepare(embedder, source, *, views, scale, captions, seed):
  """Returns the function from a record's index to its views, uint8 [V, H, W, 3], and texts."""
  crop: Callable[..., Any] = embedder.preprocess
  if scale is not None:
    squash = embedder.preprocess.resize_mode == "squash"  # type: ignore[attr-defined]
    crop = RandomResizedCrop(
      embedder.model.image.image_size,
      (scale, 1.0),
      resize_mode="squash" if squash else "keep_aspect",
      interpolation=getattr(embedder.preprocess, "interpolation", "bicubic"),
    )

  def prepare(i):
    record = source[i]
    texts = record.get("text", [])
    texts = ([texts] if isinstance(texts, str) else list(texts))[:captions]
    try:
      picture = Picture(record["image"])
      pixels = np.stack([crop(picture, view_rng(seed, i, view)) for view in range(views)])
    except (UnreadableImage, OSError):
      pixels = None
    return pixels, texts

  return prepare


def _shard(embedder, prepare, records, what, captions):
  """Returns the arrays of consecutive records."""
  prepared = list(map_ahead(prepare, records, threads=embedder.threads, ahead=embedder.batch_size))
  counts = np.array([-1 if pixels is None else len(texts) for pixels, texts in prepared])
  blank = next((np.zeros_like(pixels) for pixels, _ in prepared if pixels is not None), None)
  if blank is None:
    raise UserError(f"None of the images of records {records.start:,} and following can be read.")
  pixels = np.stack([blank if one is None else one for one, _ in prepared])
  n, V = pixels.shape[:2]
  flat = pixels.reshape(n * V, *pixels.shape[2:])
  rows = [t for _, texts in prepared for t in [*texts, *[""] * (captions - len(texts))]]
  out = {"texts": counts}
  for kind, count, made in (
    ("image", V, _in_batches(embedder, embedder.encode_pixels, flat)),
    ("text", captions, _in_batches(embedder, embedder.encode_tokens, embedder.tokenize(rows))),
  ):
    for name, x in zip(WHAT, made):
      if name in what:
        out[f"{kind}_{name}"] = x.reshape(n, count, -1)
  return out


def _in_batches(embedder, method, rows):
  size = embedder.batch_size
  made = [method(rows[i : i + size]) for i in range(0, len(rows), size)]
  return tuple(np.concatenate(parts) for parts in zip(*made))
