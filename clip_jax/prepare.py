"""Makes what training reads: python -m clip_jax.prepare --from=GLOB --format=F --out=DIR."""

from collections.abc import Iterator
import concurrent.futures
import multiprocessing
import os
from pathlib import Path
import re
import sys
import threading
import time

from clip_jax.cli import command
from clip_jax.data.ingest import inputs, shards
from clip_jax.data.records import ArrayRecord
from clip_jax.data.tokenizer import train_sentencepiece
from clip_jax.errors import UserError
from clip_jax.flags import parse, shard
from clip_jax.interfaces import Source
from clip_jax.interrupts import deaf
from clip_jax.report import duration

HELP = """Makes what training reads: ArrayRecord shards with a manifest, or a tokenizer.

  python -m clip_jax.prepare --from="cc3m/*.tar" --format=webdataset --out=DIR --processes=16
  python -m clip_jax.prepare --from=openclipart --format=source --tokenizer=OUT.model --pieces=4096
  python -m clip_jax.prepare --verify --out=DIR

  --from=WHERE           files, a folder, or a pattern in quotes; tars and Parquet may be gs://
  --format=FORMAT        webdataset: tars as img2dataset writes them; each makes one shard
                         parquet: a column of encoded images and one of texts
                         folder: images, and a table of captions or a folder for each class
                         source: --from is openclipart, ArrayRecord files, or a config file whose
                         get_config() calls a source
  --out=DIR              the folder of the shards; read it with clip_jax.data.ArrayRecord(DIR)
  --processes=N          that work at the same time (default 1)
  --shard=I/N            does the I-th of N parts, I from 0; N machines with one DIR do them all
  --max_side=N           larger images are reduced to N pixels on the longer side (default: none)
  --quality=N            of the JPEGs that are written (default 92)
  --max_text=N           characters that longer texts are cut to (default 2000)
  --records_per_shard=N  for parquet, folder and source (default 10000)
  --image=NAME           column or entry that is the image (default image)
  --text=NAME            column or entry that is the text (default caption)
  --captions=FILE        table in the folder, .jsonl, .csv or .tsv (default captions.jsonl)
  --classes              there is no table but a folder for each class
  --fields=A,B           further columns or entries to keep (default: those of key, url, license,
                         licence, source and author that there are)
  --licence=TEXT         noted in the manifest
  --source=TEXT          noted in the manifest
  --verify               compares the shards in DIR with their checksums
  --tokenizer=OUT.model  trains a SentencePiece model on the texts of a source instead
  --pieces=N             its vocabulary (default 4096)

The same command goes on where it was stopped: finished shards stay, half-written ones are made
again. What is left out or changed is counted by reason in DIR/manifest.json, which is written when
the last shard is.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""
_TEXTS = ("from", "format", "out", "shard", "image", "text", "captions", "fields", "licence",
          "source", "tokenizer")
_NUMBERS = {"processes": 1, "max_side": None, "quality": 92, "max_text": 2000,
            "records_per_shard": 10_000, "pieces": 4096}


def main(arguments: list[str]) -> None:
  """Runs the command."""
  flags = parse(arguments, HELP, strings=(*_TEXTS, *_NUMBERS), switches=("verify", "classes"))
  number = {name: _number(name, getattr(flags, name), default)
            for name, default in _NUMBERS.items()}
  if flags.verify:
    if not flags.out:
      raise UserError("Which shards? Set --out=DIR to the folder that holds them.")
    print(f"{flags.out}: {ArrayRecord(flags.out).verify():,} shards are as they were written.")
    return
  where = getattr(flags, "from")
  if not where:
    raise UserError("What should be prepared? Set --from, as in --from='tars/*.tar'.")
  if flags.tokenizer:
    _tokenizer(where, flags, number["pieces"])
    return
  if flags.format not in inputs.FORMATS:
    raise UserError(f"--format={flags.format or ''} is none of {', '.join(inputs.FORMATS)}.")
  if not flags.out:
    raise UserError("Where should the shards be written? Set --out=DIR.")
  if "://" in flags.out:
    raise UserError(f"--out={flags.out}: shards are written to this machine's files only. Set a "
                    "folder of a disk, or of a mounted bucket, or copy them afterwards.")
  if flags.format == "webdataset" and flags.records_per_shard:
    raise UserError("--records_per_shard is not for webdataset, where each tar makes one shard. "
                    "Leave it out.")
  if number["quality"] > 100:
    raise UserError(f"--quality={flags.quality} is not between 1 and 100.")
  job = inputs.Job(
      where, flags.format, flags.image or "image", flags.text or "caption",
      None if flags.classes else flags.captions or "captions.jsonl",
      None if flags.fields is None else tuple(filter(None, flags.fields.split(","))),
      *(number[name] for name in ("records_per_shard", "max_side", "quality", "max_text")))
  part, parts = shard(flags.shard)
  inputs.opened.cache_clear()  # There may be other files now than at the last call.
  _write(job, flags.out, part, parts, number["processes"])
  manifest = shards.write_manifest(job, flags.out, licence=flags.licence, source=flags.source)
  if manifest is None:
    print(f"Part {part} of {parts} is done, others are not; who is last writes manifest.json.")
    return
  print(f"{flags.out}: {manifest['records']:,} records, {manifest['bytes'] / 1e6:,.1f} MB, "
        f"{len(manifest['shards']):,} shards.")
  for what in ("dropped", "changed"):
    if manifest[what]:
      print(f"  {what}: " + ", ".join(f"{n:,} {why}" for why, n in manifest[what].items()))


def _write(job, out, part, parts, processes):
  """Makes those shards of this part that are not there yet."""
  pieces = len(inputs.opened(job))
  shards.check_folder(out, pieces)
  todo = [piece for piece in range(part, pieces, parts) if not shards.finished(job, piece, out)]
  if not todo:
    return
  # What it says will not be so any more.
  (Path(out) / "manifest.json").unlink(missing_ok=True)
  progress = _Progress(len(todo))
  if processes == 1:
    for piece in todo:
      progress.show(shards.write_shard(job, piece, out))
    return
  # Not forked: threads of libraries that are loaded already would not be there.
  with concurrent.futures.ProcessPoolExecutor(
      min(processes, len(todo)), multiprocessing.get_context("spawn"), _end_with_parent,
      (os.getpid(),)) as pool:
    tasks = deaf(lambda: [pool.submit(shards.write_shard, job, piece, out) for piece in todo])
    try:
      for task in concurrent.futures.as_completed(tasks):
        progress.show(task.result())
    except KeyboardInterrupt:  # What they are at will be made again.
      for worker in multiprocessing.active_children():
        worker.terminate()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


def _end_with_parent(parent):
  """Ends this process soon after its parent, which may be killed without a word."""

  def watch():
    while os.getppid() == parent:
      time.sleep(0.2)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _Progress:
  """The line that says how far it is: in place on a terminal, every ten seconds elsewhere."""

  def __init__(self, total: int):
    self._total, self._done, self._read, self._kept = total, 0, 0, 0
    self._start = self._shown = time.monotonic()

  def show(self, note):
    """Counts one more shard."""
    self._done += 1
    self._read += note["read"]
    self._kept += note["records"]
    now, last = time.monotonic(), self._done == self._total
    if not (sys.stderr.isatty() or last or now - self._shown > 10):
      return
    self._shown, seconds = now, max(now - self._start, 1e-6)
    left = duration(seconds / self._done * (self._total - self._done))
    line = (f"{self._done:,}/{self._total:,} shards  {self._kept:,} records  "
            f"{self._read - self._kept:,} dropped  {self._read / seconds:,.0f}/s  "
            + (f"took {duration(seconds)}" if last else f"{left} left"))
    ends = "\n" if last or not sys.stderr.isatty() else ""
    print(f"\r\033[K{line}" if sys.stderr.isatty() else line, end=ends, file=sys.stderr, flush=True)


def _number(name, written, default):
  if written is None:
    return default
  if not re.fullmatch(r"[\d_]+", written) or int(written) < 1:
    raise UserError(f"--{name}={written} is not a whole number from 1 on.")
  return int(written)


def _tokenizer(where, flags, pieces):
  if flags.format not in (None, "source"):
    raise UserError(f"--tokenizer reads a source, not --format={flags.format}. Write the shards "
                    "first, then set --from to their folder and --format=source.")
  folder = Path(flags.tokenizer).parent
  if not folder.is_dir():
    raise UserError(f"--tokenizer={flags.tokenizer}: there is no folder {folder}. Make it first.")
  vocabulary = train_sentencepiece(texts(inputs.named_source(where)), flags.tokenizer, pieces)
  print(f"{flags.tokenizer}: {vocabulary:,} pieces")


def texts(source: Source) -> Iterator[str]:
  """Every text of every record, in lower case."""
  for i in range(len(source)):
    text = source[i].get("text", [])
    yield from (t.lower() for t in ([text] if isinstance(text, str) else text))


if __name__ == "__main__":
  command(main)
