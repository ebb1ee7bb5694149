"""Makes what training reads: so far a SentencePiece tokenizer, from the captions of a source.

  python -m clip_jax.prepare --from=openclipart --format=source --tokenizer=OUT.model --pieces=4096
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from clip_jax.cli import command
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import train_sentencepiece
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

# name: makes the source with every text that a vocabulary should cover.
SOURCES = {"openclipart": lambda: OpenClipart("train", ("caption", "caption_long", "keywords"))}


def main(arguments: list[str]):
  parser = argparse.ArgumentParser(
      prog="python -m clip_jax.prepare", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--from", dest="source", required=True, help=f"one of {', '.join(SOURCES)}")
  parser.add_argument("--format", choices=["source"], default="source")
  parser.add_argument("--tokenizer", required=True, help="the model to write, NAME.model")
  parser.add_argument("--pieces", type=int, default=4096, help="vocabulary (default 4096)")
  flags = parser.parse_args(arguments)
  if flags.source not in SOURCES:
    raise UserError(f"--from={flags.source} is not a source; there are {', '.join(SOURCES)}.")
  folder = Path(flags.tokenizer).parent
  if not folder.is_dir():
    raise UserError(f"--tokenizer={flags.tokenizer}: there is no folder {folder}. Make it first.")
  vocabulary = train_sentencepiece(texts(SOURCES[flags.source]()), flags.tokenizer, flags.pieces)
  print(f"{flags.tokenizer}: {vocabulary:,} pieces")


def texts(source: Source) -> Iterator[str]:
  """Every text of every record, in lower case."""
  for i in range(len(source)):
    text = source[i]["text"]
    yield from (t.lower() for t in ([text] if isinstance(text, str) else text))


if __name__ == "__main__":
  command(main)
