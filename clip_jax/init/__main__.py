"""Starts a project: python -m clip_jax.init --from=PATH --out=DIR."""

import os
from pathlib import Path
from typing import Any

from clip_jax.cli.command import run_command

HELP = """Looks at your image-text pairs, prepares them, and writes a config that trains on them.

  python -m clip_jax.init --from=photos/captions.csv --out=DIR
  python -m clip_jax.init --from="cc3m/*.tar" --out=DIR --processes=16
  python -m clip_jax.init --from=photos --out=DIR --weights=MODEL

  --from=PATH        a table of images and captions (.csv, .tsv, .jsonl) or its folder, WebDataset
                     tars, Parquet files, a folder with a .txt next to each image, or records that
                     clip-jax prepare wrote
  --out=DIR          folder for the prepared records, the tokenizer and config.py
  --image=NAME       column with the image, if its name is not a usual one
  --text=NAME        column with the caption, if its name is not a usual one
  --image_root=DIR   folder that the paths in a table start from (default: that of the table)
  --max_side=N       downscale images to at most N pixels on the longer side (default 512)
  --processes=N      number of parallel processes that prepare data (default 1)
  --weights=MODEL    start from this model, in any form that clip_jax.load accepts
  --seed=N           seed of the held-out parts and of the run (default 0)

Keeps near-duplicates in one part when it holds out validation and test records. Rerun an
interrupted command to resume it. The last line of the output is the command to run next.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""
_FLAGS = ("from", "out", "image", "text", "image_root", "max_side", "processes", "weights", "seed")
_OF_PREPARE = ("image", "text", "image_root", "max_side", "processes")
_MOST_TEXTS = 1_000_000  # Captions that a vocabulary is made from.


def main(arguments: list[str]) -> None:
  """Runs the command."""
  from clip_jax.cli.flags import check_output, integer, parse
  from clip_jax.errors import UserError
  from clip_jax.init.survey import survey

  flags = parse(arguments, HELP, strings=_FLAGS)
  where, out = getattr(flags, "from"), flags.out
  if not where:
    raise UserError("Which data? Set --from=PATH, as in --from=photos/captions.csv.")
  if not out:
    raise UserError("Where should the config be written? Set --out=DIR.")
  path = Path(out).absolute() / "config.py"
  if path.exists():
    raise UserError(
      f"{path} exists, and you may have changed it. Delete it, or choose another --out."
    )
  seed = integer(flags.seed, "--seed", 0, at_least=0)
  integer(flags.processes, "--processes", 1)
  integer(flags.max_side, "--max_side", 512)
  found = survey(where, flags.image, flags.text)
  print(f"Found {found.kind}.", flush=True)
  bundle = _weights(flags.weights)
  data = str(Path(where).absolute())
  if found.arguments is not None:
    data = str(path.parent / "data")
    _prepare(found.arguments, data, flags)
  elif unused := [f"--{name}" for name in _OF_PREPARE if getattr(flags, name)]:
    raise UserError(f"{where} is prepared already. Remove {', '.join(unused)}.")
  path.parent.mkdir(parents=True, exist_ok=True)
  check_output(str(path), "--out")
  _write_config(path, data, seed, bundle, flags.weights)
  print(f"Wrote {path}. Look at it, then train:\n")
  name = os.path.relpath(path)
  workdir = os.path.join(os.path.dirname(name), "run")
  print(f"  python -m clip_jax.train --config={name} --workdir={workdir}")


def _weights(where):
  """Reads published weights before anything expensive starts; None if there are none."""
  if where is None:
    return None
  from clip_jax.inference.loading import load_bundle

  return load_bundle(where)


def _prepare(arguments, data, flags):
  """Converts the input to records."""
  from clip_jax import prepare

  where, kind, *options = arguments
  prepare.main(
    [
      f"--from={where}",
      f"--format={kind}",
      f"--out={data}",
      f"--max_side={flags.max_side or 512}",
      *(f"--{n}={v}" for n in ("processes", "image_root") if (v := getattr(flags, n))),
      *options,
    ]
  )


def _write_config(path: Path, data: str, seed: int, bundle: Any, weights: str | None) -> None:
  """Splits the records, makes a tokenizer and writes the config."""
  from clip_jax.config import build, call
  from clip_jax.data.records import ArrayRecord
  from clip_jax.data.split import Split
  from clip_jax.files import write_atomically
  from clip_jax.inference.loading import describe
  from clip_jax.init import facts as facts_lib
  from clip_jax.init.config_source import config_source
  from clip_jax.study import starting_config as study

  records = ArrayRecord(data)
  fractions = study.held_out_fractions(len(records))

  def source(part):
    return call(
      Split, source=call(ArrayRecord, path=data), part=part, fractions=fractions, seed=seed
    )

  facts, texts = facts_lib.measure(records)
  few = f", {facts.captions} captions each at most" if facts.captions > 1 else ""
  print(
    f"{facts.pairs:,} pairs{few}; images of {facts.side} pixels in the median; "
    f"{facts.repeated:.0%} of the captions occur more than once."
  )
  train = build(source("train"))
  print(f"{train.describe()}.")
  if bundle is None:
    tokenizer, vocabulary = _own_tokenizer(path.parent, train, facts, texts)
  else:
    tokenizer, vocabulary = _saved_tokenizer(path.parent, bundle.tokenizer)
  made = study.starting_config(
    facts,
    source=source,
    tokenizer=tokenizer,
    vocab_size=vocabulary,
    weights=os.path.abspath(weights) if weights and os.path.exists(weights) else weights,
    start=None if weights is None else describe(weights),
  )
  made.config.seed = seed
  notes = [
    f"Written by clip-jax init for {len(train):,} training pairs in {data}; "
    f"{facts.repeated:.0%} of the captions occur more than once.",
    *made.reasons,
    f"Train with python -m clip_jax.train --config={path} --workdir=DIR. Every value can be "
    "overridden on the command line, as in --config.train.steps=1000.",
  ]
  write_atomically(path, config_source(made.config, "A first config for these pairs.", notes))
  for reason in made.reasons:
    print(f"- {reason}")


def _own_tokenizer(folder, train, facts, texts):
  """Trains a vocabulary on the training captions; returns the call and the number of tokens."""
  import itertools

  from clip_jax import prepare
  from clip_jax.config import build, call
  from clip_jax.data.tokenizer import SentencePiece, train_sentencepiece
  from clip_jax.init.facts import context_length
  from clip_jax.study.starting_config import most_tokens, vocabulary_size

  file = str(folder / "tokenizer.model")
  captions = itertools.islice(prepare.texts(train), _MOST_TEXTS)
  pieces = train_sentencepiece(captions, file, vocabulary_size(facts.pairs))
  most = most_tokens(facts.pairs)
  long = build(call(SentencePiece, model=file, context_length=512, eos=False))
  length = context_length(long, texts, most)
  print(f"Trained a tokenizer with {pieces:,} tokens; captions are cut at {length} of them.")
  # Transformers pool at the end token, a bag of tokens does not need one.
  return call(SentencePiece, model=file, context_length=length, eos=facts.pairs >= 100_000), pieces


def _saved_tokenizer(folder, tokenizer):
  """Returns the call of a checkpoint's tokenizer, and its number of tokens."""
  from clip_jax.config import call
  from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, TokenizerJson
  from clip_jax.data.tokenizer import ClipBpe, SentencePiece
  from clip_jax.errors import UserError
  from clip_jax.files import write_atomically

  length = tokenizer.context_length
  if isinstance(tokenizer, CleanedTokenizer):
    inner, _ = _saved_tokenizer(folder, tokenizer.tokenizer)
    made = call(CleanedTokenizer, tokenizer=inner, clean=tokenizer.clean)
  elif isinstance(tokenizer, ClipBpe):
    made = call(ClipBpe, context_length=length, fix_text=tokenizer.fix_text)
  elif isinstance(tokenizer, TokenizerJson):
    file = folder / "tokenizer.json"
    write_atomically(file, tokenizer.json)
    made = call(TokenizerJson, path=str(file), context_length=length, padding=tokenizer.padding)
  elif isinstance(tokenizer, SentencePiece):
    file = folder / "tokenizer.model"
    write_atomically(file, tokenizer.model)
    options = {name: getattr(tokenizer, name) for name in ("lower", "bos", "eos", "sticky_eos")}
    made = call(SentencePiece, model=str(file), context_length=length, **options)
  else:
    raise UserError(
      f"The model's tokenizer is a {type(tokenizer).__name__}, which a config cannot name. Choose "
      "other --weights."
    )
  return made, tokenizer.vocab_size


if __name__ == "__main__":
  run_command(main)
