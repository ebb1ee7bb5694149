"""Prepares training data: python -m clip_jax.prepare --from=GLOB --format=F --out=DIR."""

from collections.abc import Iterator
import logging
import os
from pathlib import Path
import threading
import time
from typing import TYPE_CHECKING

from clip_jax.cli.command import run_command
from clip_jax.cli.progress import Progress, log
from clip_jax.errors import UserError

if TYPE_CHECKING:
  from clip_jax.interfaces import Source

HELP = """Converts data to ArrayRecord shards for training, or trains a tokenizer.

  python -m clip_jax.prepare --from=pairs.csv --format=table --image_root=photos --out=DIR
  python -m clip_jax.prepare --from="cc3m/*.tar" --format=webdataset --out=DIR --processes=16
  python -m clip_jax.prepare --from=openclipart --format=source --tokenizer=OUT.model --pieces=4096
  python -m clip_jax.prepare --verify --out=DIR

  --from=WHERE           input: files, a folder, or a quoted pattern such as "cc3m/*.tar" or
                         "cc3m/{00000..00331}.tar"; tars and Parquet may be gs://
  --format=FORMAT        table: CSV, TSV, .jsonl or .json with paths of images and their captions
                         folder: images with captions in NAME.txt, a table in the folder, or one
                         subfolder per class
                         webdataset: tars as img2dataset writes them; each becomes one shard
                         parquet: a column of images or their paths, and a column of texts
                         iconify: icons, a folder of Iconify JSON files (npm pack @iconify/json)
                         source: --from is openclipart, ArrayRecord files, or a config file with a
                         get_config() that returns the call of a source
  --out=DIR              folder for the shards; clip_jax.data.ArrayRecord(DIR) reads them
  --processes=N          number of parallel processes (default 1)
  --shard=I/N            process only part I of N, counting from 0, to split the work between N
                         machines that share DIR
  --max_side=N           downscale images to at most N pixels on the longer side (default: no
                         limit); for iconify, the side of the drawings (default 64)
  --pixels               store decoded pixels instead of JPEG or PNG: several times the space, but
                         faster to read, if images are at most about 64 pixels wide
  --quality=N            quality of the JPEGs that are written, 1 to 100 (default 92)
  --max_text=N           truncate texts to N characters (default 2000)
  --language=KEY         text to keep where texts are given by language, as {"en": "a dog"}
  --unescape_html        replace HTML entities in texts, such as &amp;
  --fix_encoding         repair wrongly decoded texts, such as "cafÃ©" (needs the [text] extra)
  --licence=TEXT         licence to record in the manifest
  --source=TEXT          origin of the data to record in the manifest
  --verify               compare the shards in DIR with their checksums
  --tokenizer=OUT.model  train a SentencePiece model on the texts of a source instead
  --pieces=N             vocabulary size of the tokenizer (default 4096)

Some formats only; with another format they are an error:

  --image=NAME           table, parquet: column with the image (default: image, filepath, file_name
                         and other usual names); webdataset, folder: endings such as "jpg;png"
  --text=NAME            the same for the text (default: caption, text, title ...; .txt, or the
                         "caption" in .json); in webdataset also the name of an entry of the .json
  --fields=A,B           further columns or entries of the .json to keep (default: those of key,
                         url, license, licence, source and author that exist)
  --records_per_shard=N  shard size for all formats except webdataset (default 10000)
  --image_root=DIR       table, parquet: folder that paths of images start from, and that they may
                         not leave (default for a table: its folder, and any path is read)
  --delimiter=C          table: the character between columns, or tab, comma, semicolon or pipe
                         (default: guessed from the header)
  --quotes=literal       table: quotes are ordinary characters (default csv: they enclose fields)
  --on_error=skip        table: drop and count rows that are malformed (default raise: stop)
  --captions=FILE        folder: table in the folder (default: captions.jsonl or the only table)
  --caption_files        folder: captions are in NAME.txt, NAME.caption or NAME.json (default if
                         there is no table)
  --classes              folder: one subfolder per class instead of captions
  --licences=L,...       iconify: permissive (the default), all, or SPDX identifiers
  --key_dot=last         webdataset: keys end at the last dot of the name, as in 1.5.jpg (default
                         first, as in webdataset)

N may be written 10_000, 10k or 2.5M. Rerun an interrupted command to resume it: finished shards are
kept. DIR/manifest.json is written after the last shard. It counts what became of every row, file or
member of a tar that was found: read, dropped or not asked for, by reason.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""
_NUMBERS = {
  "processes": 1,
  "max_side": None,
  "quality": 92,
  "max_text": 2000,
  "records_per_shard": 10_000,
  "pieces": 4096,
}
_STRINGS = (
  *("from", "format", "out", "shard", "image", "text", "fields", "captions", "image_root"),
  *("delimiter", "quotes", "on_error", "key_dot", "language", "licence", "source", "tokenizer"),
  "licences",
  *_NUMBERS,
)
_SWITCHES = ("verify", "classes", "caption_files", "unescape_html", "fix_encoding", "pixels")


def main(arguments: list[str]) -> None:
  """Runs the command."""
  from clip_jax.cli.flags import integer, parse, shard

  flags = parse(arguments, HELP, strings=_STRINGS, switches=_SWITCHES)
  numbers = {
    name: integer(getattr(flags, name), f"--{name}", default) for name, default in _NUMBERS.items()
  }
  from clip_jax.data.ingest import inputs, job_flags, shards
  from clip_jax.data.records import ArrayRecord

  if flags.verify:
    job_flags.check_used(flags, "--verify")
    if not flags.out:
      raise UserError("Which shards? Set --out=DIR to their folder.")
    print(f"{flags.out}: {ArrayRecord(flags.out).verify():,} shards match their checksums.")
    return
  if not getattr(flags, "from"):
    raise UserError("What should be prepared? Set --from, for example --from='tars/*.tar'.")
  if flags.tokenizer:
    _tokenizer(getattr(flags, "from"), flags, numbers["pieces"])
    return
  part, parts = shard(flags.shard)
  job = job_flags.job_of(flags, numbers)
  inputs.open_inputs.cache_clear()  # The files may have changed since an earlier call.
  note = inputs.open_inputs(job).note
  if note:
    print(note)
  _write(job, flags.out, part, parts, numbers["processes"])
  manifest = shards.write_manifest(job, flags.out, licence=flags.licence, source=flags.source)
  if manifest is None:
    print(f"Part {part} of {parts} is done; the last part to finish writes manifest.json.")
    return
  _report(manifest, flags.out)
  if job.format == "iconify":
    from clip_jax.data.ingest.icon_index import write_index

    index = write_index(flags.out, numbers["processes"])
    print(f"  {index['drawings']:,} different drawings in {index['groups']:,} groups")
    print("  splits: " + ", ".join(f"{n:,} {split}" for split, n in index["splits"].items()))


def _report(manifest, out):
  """Prints what was written, and what became of everything that was found."""
  from clip_jax.data.ingest import shards

  print(
    f"{out}: {manifest['records']:,} records, {manifest['bytes'] / 1e6:,.1f} MB, "
    f"{len(manifest['shards']):,} shards."
  )
  for what in ("dropped", "changed"):
    if manifest[what]:
      print(f"  {what}: {shards.counted(manifest[what])}")
  items = manifest["items"]
  dropped, left = (sum(items[name].values()) for name in ("dropped", "not_asked_for"))
  print(
    f"  {items['unit']}: found {items['found']:,} = read {items['read']:,} + dropped {dropped:,} + "
    f"not asked for {left:,}" + (f" ({shards.counted(items['not_asked_for'])})" if left else "")
  )
  for hint in shards.hints(manifest["dropped"]):
    print(f"  {hint}")


def _write(job, out, part, parts, processes):
  """Writes the unfinished shards of this part."""
  import concurrent.futures
  import multiprocessing

  from clip_jax.data.ingest import inputs, shards
  from clip_jax.parallel.signals import shield_from_sigint

  pieces = len(inputs.open_inputs(job))
  shards.check_folder(out, pieces)
  todo = [piece for piece in range(part, pieces, parts) if not shards.is_finished(job, piece, out)]
  if not todo:
    return
  # It is about to become out of date.
  (Path(out) / "manifest.json").unlink(missing_ok=True)
  progress = _Shards(len(todo))
  if processes == 1:
    for piece in todo:
      progress.show(shards.write_shard(job, piece, out))
    return
  # Spawn, because forked processes would lack the threads of libraries that are already loaded.
  with concurrent.futures.ProcessPoolExecutor(
    min(processes, len(todo)),
    multiprocessing.get_context("spawn"),
    _end_with_parent,
    (os.getpid(),),
  ) as pool:
    tasks = shield_from_sigint(
      lambda: [pool.submit(shards.write_shard, job, piece, out) for piece in todo]
    )
    try:
      for task in concurrent.futures.as_completed(tasks):
        progress.show(task.result())
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(
        "One of the processes that write shards was killed, perhaps for lack of memory. Rerun the "
        "command to resume with the shards that are missing; fewer --processes need less memory."
      ) from error
    except KeyboardInterrupt:  # A rerun repeats the unfinished shards.
      for worker in multiprocessing.active_children():
        worker.terminate()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


def _end_with_parent(parent):
  """Ends this process soon after its parent, which may be killed without cleaning up."""
  # The parent has logged what it skipped when it listed the input.
  logging.getLogger("clip_jax").setLevel(logging.ERROR)

  def watch():
    while os.getppid() == parent:
      time.sleep(0.2)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _Shards:
  """The progress of shards that are written."""

  def __init__(self, total: int):
    self._progress = Progress(total, log, "shards")
    self._read = self._kept = 0

  def show(self, note):
    """Adds a finished shard."""
    self._read, self._kept = self._read + note["read"], self._kept + note["records"]
    dropped = self._read - self._kept
    self._progress.add(1, note=f"{self._kept:,} records  {dropped:,} dropped")


def _tokenizer(where, flags, pieces):
  from clip_jax.data.ingest.inputs import named_source
  from clip_jax.data.ingest.job_flags import check_used
  from clip_jax.data.tokenizer import train_sentencepiece

  check_used(flags, "--tokenizer")
  if flags.format not in (None, "source"):
    raise UserError(
      f"--tokenizer works with --format=source only, not {flags.format}. Write "
      "shards first, then set --from to their folder."
    )
  folder = Path(flags.tokenizer).parent
  if not folder.is_dir():
    raise UserError(f"--tokenizer={flags.tokenizer}: there is no folder {folder}. Create it first.")
  vocabulary = train_sentencepiece(texts(named_source(where)), flags.tokenizer, pieces)
  print(f"{flags.tokenizer}: {vocabulary:,} pieces")


def texts(source: "Source") -> Iterator[str]:
  """Yields every text of every record, in lower case."""
  for i in range(len(source)):
    text = source[i].get("text", [])
    yield from (t.lower() for t in ([text] if isinstance(text, str) else text))


if __name__ == "__main__":
  run_command(main)
