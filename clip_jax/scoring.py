"""How well the image and the text of each record of a source go together, by a model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
from pathlib import Path
import shutil

from flax import nnx
import jax
import numpy as np

from clip_jax.data.scores import fingerprint, read_scores, write_scores
from clip_jax.embedder import Embedder
from clip_jax.errors import UserError
from clip_jax.interfaces import Source
from clip_jax.report import Progress

CAPTIONS = {"mean": np.add, "max": np.maximum}


def score(embedder: Embedder, source: Source, out: str | Path, *, shard: tuple[int, int] = (0, 1),
          captions: str = "mean", chunk: int | None = None,
          say: Callable[[str], None] = print) -> np.ndarray | None:
  """Writes the cosine similarity of image and text of each record to the side file `out`.

  The work lies in chunks, each a file in `OUT.parts` that is there whole or not at all. So a killed
  run goes on where it was, and any number of machines that share the folder can take their shards;
  whoever finishes the last chunk puts them together. A record that cannot be read gets NaN.

  Args:
    embedder: the model.
    source: the records, of which every machine sees all.
    out: the file, by convention NAME.npz; `Quality` reads it.
    shard: (i, n), this machine's chunks are every n-th from the i-th on.
    captions: what a record with several gets: the "mean" of their similarities, or the "max".
    chunk: records to a file; 1,024, or more where that would be more than 16,384 files.
    say: takes lines for a person.

  Returns:
    float32 [n], mapped from the file; None when chunks of other shards are missing still.

  Raises:
    UserError: `out` or the parts are of another model, source or way of scoring; the records have
      no image or no text; the model gives NaN.
  """
  if captions not in CAPTIONS:
    raise UserError(f"captions {captions!r} is not {' or '.join(CAPTIONS)}.")
  out, n = Path(out), len(source)
  chunk = chunk or 1024 * max(1, -(-n // (1024 * 16384)))
  facts = {"model_fingerprint": model_fingerprint(embedder.model), "captions": captions}
  wanted = {**facts, "records": n, "source_fingerprint": fingerprint(source)}
  if out.exists():
    scores, header = read_scores(out)
    _check_same(header, wanted, f"{out} is there already, and")
    say(f"{out} is complete already.")
    return scores
  parts = out.with_name(out.name + ".parts")
  _begin(parts, {**wanted, "chunk": chunk})
  files = [parts / f"{i:06}.npy" for i in range(-(-n // chunk))]
  mine = [i for i in range(len(files)) if i % shard[1] == shard[0]]
  todo = [i for i in mine if not files[i].exists()]
  if len(todo) < len(mine):
    say(f"{len(mine) - len(todo):,} of {len(mine):,} chunks are there already; going on from them.")
  progress = Progress(sum(min(chunk, n - i * chunk) for i in todo), say, "records")
  with ThreadPoolExecutor(embedder.threads) as pool, ThreadPoolExecutor(1) as ahead:
    for i in todo:
      places = range(i * chunk, min(n, (i + 1) * chunk))
      _save(files[i], _chunk(embedder, source, places, captions, pool, ahead, progress))
  missing = sum(not file.exists() for file in files)
  if missing and not out.exists():  # Another machine may have put them together just now.
    say(f"Shard {shard[0]}/{shard[1]} is done. {missing:,} of {len(files):,} chunks are still to "
        "be made by the others; the last to finish puts them together.")
    return None
  return _together(files, out, parts, source, facts, say)


def model_fingerprint(model: nnx.Module) -> str:
  """Tells one model from another: all its parameters, with their names and types."""
  seen = hashlib.sha256()
  flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))
  for path, x in flat:
    x = np.asarray(x)
    seen.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
    seen.update(x.tobytes())
  return seen.hexdigest()[:16]


def similarities(embedder: Embedder, images: np.ndarray, texts: list[list[str]],
                 captions: str = "mean") -> np.ndarray:
  """Cosine similarity of each image and its own texts.

  Args:
    embedder: the model.
    images: uint8 [n, H, W, 3].
    texts: of each image, at least one.
    captions: "mean" or "max" over an image's texts.

  Returns:
    float32 [n].
  """
  counts = np.array([len(own) for own in texts])
  z_image = np.repeat(embedder.encode_image(images), counts, axis=0)              # [m, E]
  z_text = embedder.encode_text([text for own in texts for text in own])          # [m, E]
  each = np.einsum("me,me->m", z_image, z_text)
  joined = CAPTIONS[captions].reduceat(each, np.cumsum(counts) - counts)
  return joined / counts if captions == "mean" else joined


def _chunk(embedder, source, places, captions, pool, ahead, progress):
  """float32 [len(places)], NaN where a record cannot be read."""
  scores = np.full(len(places), np.nan, np.float32)
  pieces = [places[i:i + embedder.batch_size] for i in range(0, len(places), embedder.batch_size)]

  def read(piece):
    return list(pool.map(lambda i: _read(embedder, source, i), piece))

  coming = ahead.submit(read, pieces[0])
  for k, piece in enumerate(pieces):
    made = coming.result()
    if k + 1 < len(pieces):
      coming = ahead.submit(read, pieces[k + 1])  # While the model is busy with this one.
    good = [j for j, one in enumerate(made) if one is not None]
    if good:
      got = similarities(embedder, np.stack([made[j][0] for j in good]),
                         [made[j][1] for j in good], captions)
      if not np.isfinite(got).all():
        raise UserError(
            f"The model gives {np.count_nonzero(~np.isfinite(got))} of {len(got)} readable records "
            f"a similarity that is not a number (the first is record "
            f"{piece[good[int(np.argmin(np.isfinite(got)))]]}). Its training has diverged; score "
            "with another checkpoint.")
      scores[np.array(good) + piece[0] - places[0]] = got
    progress.add(len(piece), len(piece) - len(good))
  return scores


def _read(embedder, source, i):
  """(uint8 [H, W, 3] as the model wants it, texts) of a record, or None."""
  try:
    record = source[i]
    missing = [name for name in ("image", "text") if name not in record]
    if missing:
      raise UserError(f"Record {i} has no {' and no '.join(map(repr, missing))}; it has "
                      f"{', '.join(map(repr, record))}. Let the source name its fields so.")
    text = record["text"]
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(t, str) for t in texts):
      return None
    return embedder.preprocess(record["image"]), texts
  except UserError:
    raise  # A wrong setting is wrong for every record.
  except Exception:  # Whatever a reader or a decoder throws at broken bytes.
    return None


def _begin(parts, wanted):
  """Makes the folder of the chunks, or checks that it is of this very task."""
  plan = parts / "plan.json"
  try:
    parts.mkdir(parents=True, exist_ok=True)
    if not plan.exists():
      temporary = plan.with_suffix(f".{os.getpid()}")
      temporary.write_text(json.dumps(wanted))
      os.replace(temporary, plan)
  except OSError as error:
    raise UserError(f"Nothing can be written to {parts}: {error.strerror}. Name another file by "
                    "--out.") from error
  _check_same(json.loads(plan.read_text()), wanted, f"In {parts} lies what was begun before, and")


def _check_same(there, wanted, what):
  """Raises if scores that are there are not those that are wanted."""
  names = {"model_fingerprint": "by another model", "captions": "with another --captions",
           "chunk": "in chunks of another size"}
  differ = [said for name, said in names.items() if there.get(name) != wanted.get(name)]
  if (there.get("records"), there.get("source_fingerprint")) != (
      wanted["records"], wanted["source_fingerprint"]):
    differ.append(f"of another source ({there.get('records')} records, here {wanted['records']})")
  if differ:
    raise UserError(f"{what} it holds scores {' and '.join(differ)}. Remove it, or name another "
                    "file by --out.")


def _save(file, scores):
  """Writes one chunk, whole or not at all."""
  temporary = file.with_name(f"{file.name}.{os.getpid()}")
  with open(temporary, "wb") as f:
    np.save(f, scores)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, file)


def _together(files, out, parts, source, facts, say):
  """Writes the chunks as one file, tells what is in it, and removes them."""
  try:
    damaged, first = 0, []
    for file in files:
      bad = np.flatnonzero(np.isnan(np.load(file)))
      if len(first) < 20:
        start = int(file.stem) * len(np.load(files[0]))
        first += (bad[:20 - len(first)] + start).tolist()
      damaged += len(bad)
    write_scores(out, map(np.load, files), source, **facts, damaged=damaged)
  except FileNotFoundError:
    if not out.exists():
      raise
    say(f"{out} was put together by another machine.")
    return read_scores(out)[0]
  shutil.rmtree(parts, ignore_errors=True)
  scores, _ = read_scores(out)
  say(f"{out}: {len(scores):,} scores" + (
      f", mean {np.nanmean(scores, dtype=np.float64):.4f}" if damaged < len(scores) else ""))
  if damaged:
    say(f"{damaged:,} records could not be read and have none (NaN); they are number "
        f"{', '.join(map(str, first))}{' and others' if damaged > len(first) else ''} of the "
        "source.")
  return scores
