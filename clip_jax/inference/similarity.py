"""Scores the records of a source by the image-text similarity that a model computes."""

from collections.abc import Callable
from contextlib import closing
import hashlib
from itertools import chain, islice
import json
from pathlib import Path
import shutil

from flax import nnx
import numpy as np

from clip_jax.cli.progress import Progress
from clip_jax.cli.values import shorten
from clip_jax.data.read_ahead import batched, map_ahead
from clip_jax.data.score_file import fingerprint, read_scores, write_scores
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import atomic_write, write_atomically
from clip_jax.inference.embedder import Embedder
from clip_jax.interfaces import Source
from clip_jax.parallel.tree_paths import leaves_by_name

CAPTIONS = {"mean": np.add, "max": np.maximum}


def score(
  embedder: Embedder,
  source: Source,
  out: str | Path,
  *,
  shard: tuple[int, int] = (0, 1),
  captions: str = "mean",
  chunk: int | None = None,
  say: Callable[[str], None] = print,
) -> np.ndarray | None:
  """Writes the cosine similarity of the image and text of each record to the score file `out`.

  Scores are computed in chunks, each written atomically to a file in `OUT.parts`. A rerun therefore
  resumes after the last finished chunk, and machines that share the folder can each process a
  shard. The process that finishes the last chunk merges all of them. Unreadable records get NaN.

  Args:
    embedder: the model.
    source: all records; the same on every machine.
    out: output file, by convention NAME.npz; `ScoreFilter` reads it.
    shard: (i, n); this process computes every n-th chunk starting from the i-th.
    captions: score of a record with several captions, "mean" or "max" of their similarities.
    chunk: records per file; by default 1,024, or more to keep to 16,384 files.
    say: receives progress messages.

  Returns:
    float32 [n], memory-mapped; None if chunks of other shards are still missing.

  Raises:
    UserError: `out` or its parts belong to another model, source or setting; the records have no
      image or no text; or the model returns NaN.
  """
  if captions not in CAPTIONS:
    raise UserError(f"captions is {captions!r}; expected {' or '.join(CAPTIONS)}.")
  out, n = Path(out), len(source)
  chunk = chunk or 1024 * max(1, -(-n // (1024 * 16384)))
  facts = {"model_fingerprint": model_fingerprint(embedder.model), "captions": captions}
  wanted = {**facts, "records": n, "source_fingerprint": fingerprint(source)}
  if out.exists():
    scores, header = read_scores(out)
    _check_same(header, wanted, f"{out} exists and")
    say(f"{out} is already complete.")
    return scores
  parts = out.with_name(out.name + ".parts")
  _begin(parts, {**wanted, "chunk": chunk})
  files = [parts / f"{i:06}.npy" for i in range(-(-n // chunk))]
  mine = [i for i in range(len(files)) if i % shard[1] == shard[0]]
  todo = [i for i in mine if not files[i].exists()]
  if len(todo) < len(mine):
    say(f"{len(mine) - len(todo):,} of {len(mine):,} chunks are already done; resuming.")
  progress = Progress(sum(min(chunk, n - i * chunk) for i in todo), say, "records")
  numbers = {i: range(i * chunk, min(n, (i + 1) * chunk)) for i in todo}
  with closing(
    map_ahead(
      lambda i: _read(embedder, source, i),
      chain.from_iterable(numbers.values()),
      threads=embedder.threads,
      ahead=embedder.batch_size,
    )
  ) as records:
    for i in todo:
      _save(files[i], _chunk(embedder, records, numbers[i], captions, progress))
  missing = sum(not file.exists() for file in files)
  if missing and not out.exists():  # Another machine may have just merged them.
    say(
      f"Shard {shard[0]}/{shard[1]} is done. {missing:,} of {len(files):,} chunks of other "
      "shards are missing; the last shard to finish merges all chunks."
    )
    return None
  return _merge(files, out, parts, source, facts, say)


def model_fingerprint(model: nnx.Module) -> str:
  """Computes a hash of all parameters of a model, with their names, dtypes and shapes."""
  seen = hashlib.sha256()
  for name, x in leaves_by_name(nnx.to_pure_dict(nnx.state(model))).items():
    x = np.asarray(x)
    seen.update(f"{name} {x.dtype} {x.shape}".encode())
    seen.update(x.tobytes())
  return seen.hexdigest()[:16]


def similarities(
  embedder: Embedder, images: np.ndarray, texts: list[list[str]], captions: str = "mean"
) -> np.ndarray:
  """Computes the cosine similarity of each image and its own texts.

  Args:
    embedder: the model.
    images: uint8 [n, H, W, 3].
    texts: list of at least one text for each image.
    captions: "mean" or "max" over the texts of an image.

  Returns:
    float32 [n].
  """
  counts = np.array([len(own) for own in texts])
  z_image = np.repeat(embedder.encode_image(images), counts, axis=0)  # [m, E]
  z_text = embedder.encode_text([text for own in texts for text in own])  # [m, E]
  each = np.einsum("me,me->m", z_image, z_text)
  joined = CAPTIONS[captions].reduceat(each, np.cumsum(counts) - counts)
  return joined / counts if captions == "mean" else joined


def _chunk(embedder, records, numbers, captions, progress):
  """Scores the next `len(numbers)` records, float32 [len(numbers)]; NaN for unreadable ones."""
  scores = np.full(len(numbers), np.nan, np.float32)
  for piece in batched(numbers, embedder.batch_size):
    made = list(islice(records, len(piece)))
    good = [j for j, one in enumerate(made) if one is not None]
    if good:
      got = similarities(
        embedder, np.stack([made[j][0] for j in good]), [made[j][1] for j in good], captions
      )
      if not np.isfinite(got).all():
        raise UserError(
          f"The model returns NaN or infinity for {np.count_nonzero(~np.isfinite(got))} of "
          f"{len(got)} readable records (the first is record "
          f"{piece[good[int(np.argmin(np.isfinite(got)))]]}). Its training has diverged; use "
          "another checkpoint."
        )
      scores[np.array(good) + piece[0] - numbers[0]] = got
    progress.add(len(piece), len(piece) - len(good))
  return scores


def _read(embedder, source, i):
  """Returns (preprocessed image, uint8 [H, W, 3], texts) of a record, or None if unreadable."""
  try:
    record = source[i]
    missing = [name for name in ("image", "text") if name not in record]
    if missing:
      raise UserError(
        f"Record {i} has no {' and no '.join(map(repr, missing))}; it has "
        f"{', '.join(map(repr, record))}. Rename the fields in the source."
      )
    text = record["text"]
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(t, str) for t in texts):
      return None
    return embedder.preprocess(record["image"]), texts
  except UserError:
    raise  # Configuration errors affect all records.
  except Exception:  # Readers and decoders raise many kinds of errors for damaged data.
    return None


def _begin(parts, wanted):
  """Creates the folder of the chunks, or checks that an existing one is for the same task."""
  plan = parts / "plan.json"
  try:
    parts.mkdir(parents=True, exist_ok=True)
    if not plan.exists():
      write_atomically(plan, json.dumps(wanted))
  except OSError as error:
    raise UserError(
      f"Cannot write to {parts}: {error.strerror}. Set --out to another file."
    ) from error
  earlier = read_json(plan, dict, f"Delete {parts}, or set --out to another file.")
  _check_same(earlier, wanted, f"{parts} is left from an earlier run and")


def _check_same(there, wanted, what):
  """Raises UserError if existing scores belong to another task than the requested one."""
  names = {
    "model_fingerprint": "of another model",
    "captions": "with another --captions",
    "chunk": "with another chunk size",
  }
  differ = [said for name, said in names.items() if there.get(name) != wanted.get(name)]
  if (there.get("records"), there.get("source_fingerprint")) != (
    wanted["records"],
    wanted["source_fingerprint"],
  ):
    found = shorten(there.get("records"))
    differ.append(f"of another source ({found} records, here {wanted['records']})")
  if differ:
    raise UserError(
      f"{what} contains scores {' and '.join(differ)}. Delete it, or set --out to another file."
    )


def _save(file, scores):
  """Writes one chunk atomically."""
  with atomic_write(file, "wb") as f:
    np.save(f, scores)


def _load(file):
  """Returns the scores of one chunk, float32 [n]."""
  try:
    scores = np.load(file, allow_pickle=False)
    if scores.ndim != 1 or scores.dtype != np.float32:
      raise ValueError(f"it holds {scores.dtype} {scores.shape}")
    return scores
  except FileNotFoundError:
    raise
  except Exception as error:  # NumPy raises many kinds of errors for damaged files.
    raise UserError(f"{file} is damaged: {error}. Delete it, and rerun the command.") from error


def _merge(files, out, parts, source, facts, say):
  """Merges the chunks into one file, reports a summary, and deletes the chunks."""
  try:
    damaged, first, chunk = 0, [], len(_load(files[0]))
    for file in files:
      bad = np.flatnonzero(np.isnan(_load(file)))
      if len(first) < 20:
        start = int(file.stem) * chunk
        first += (bad[: 20 - len(first)] + start).tolist()
      damaged += len(bad)
    write_scores(out, map(_load, files), source, **facts, damaged=damaged)
  except FileNotFoundError:
    if not out.exists():
      raise
    say(f"{out} was written by another machine.")
    return read_scores(out)[0]
  shutil.rmtree(parts, ignore_errors=True)
  scores, _ = read_scores(out)
  say(
    f"{out}: {len(scores):,} scores"
    + (f", mean {np.nanmean(scores, dtype=np.float64):.4f}" if damaged < len(scores) else "")
  )
  if damaged:
    say(
      f"{damaged:,} records could not be read and have no score (NaN): number "
      f"{', '.join(map(str, first))}{' and others' if damaged > len(first) else ''} of the "
      "source."
    )
  return scores
