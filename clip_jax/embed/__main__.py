"""Stores embeddings: python -m clip_jax.embed --model=MODEL --source=S --out=DIR."""

from clip_jax.cli.command import run_command

HELP = """Writes what a model's towers make of the records of a source, for training on them.

  python -m clip_jax.embed --model=MODEL --out=DIR [--source=S | --config=F ...]
                           [--views=1] [--scale=0.9] [--captions=4] [--what=features,embeddings]

  --model=MODEL        workdir of a training run, exported model, or checkpoint of another library
  --out=DIR            float16 arrays in shards, with checksums and a manifest
  --source=S           records to embed, as for clip_jax.score; by default those that the model was
                       trained on
  --config=FILE        embed the data.source of a config instead; --config.data.source.x=y overrides
                       its settings as in training
  --views=V            views of each image; more than 1 needs --scale
  --scale=X            the views are random crops of at least this share of the area, instead of the
                       model's own preprocessing
  --captions=K         texts of a record that are embedded, at most
  --what=W,...         features: outputs of the towers, to train on instead of running them
                       embeddings: unit vectors, for distillation
  --seed=N             seed of the crops
  --trust=MODULE,...   modules besides clip_jax that the config of the model may call

Rerun an interrupted command to resume it. Train on the result with
  python -m clip_jax.train --config=configs/stored_features.py:DIR --workdir=RUN

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from pathlib import Path

  from clip_jax.cli.flags import integer, parse
  from clip_jax.cli.local_paths import local_path
  from clip_jax.errors import UserError

  has_config = any(argument.startswith(("--config=", "--config.")) for argument in arguments)
  strings = ("model", "source", "out", "views", "scale", "captions", "what", "seed", "trust")
  flags = parse(arguments, HELP, config=has_config, strings=strings)
  if not flags.model:
    raise UserError("Which model? Set --model=MODEL, for example the workdir of a training run.")
  if not flags.out:
    raise UserError("Where should the embeddings be written? Set --out=DIR.")
  if has_config and flags.source:
    raise UserError("--source and --config exclude each other; set only one of them.")
  from clip_jax.embed.writer import WHAT, write_embeddings

  what = (flags.what or ",".join(WHAT)).split(",")
  if not set(what) <= set(WHAT):
    raise UserError(f"--what={flags.what} names something else than {', '.join(WHAT)}.")
  try:
    scale = None if flags.scale is None else float(flags.scale)
  except ValueError:
    scale = -1.0
  if scale is not None and not 0 < scale <= 1:
    raise UserError(f"--scale={flags.scale} is not a share of the area, above 0 and at most 1.")
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  if has_config:
    from clip_jax.config import build

    source = build(flags.config.data.source)
  else:
    from clip_jax.score import source_of, trained_on

    source = source_of(flags.source) if flags.source else trained_on(flags.model, trust=trust)
  from clip_jax.inference.loading import load
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  unreadable = write_embeddings(
    load(flags.model, trust=trust),
    source,
    local_path(Path(flags.out), "--out"),
    model=str(Path(flags.model).absolute()) if Path(flags.model).exists() else flags.model,
    what=what,
    views=integer(flags.views, "--views", 1),
    scale=scale,
    captions=integer(flags.captions, "--captions", 4),
    seed=integer(flags.seed, "--seed", 0, at_least=0),
  )
  print(f"Embedded {len(source):,} records; {unreadable:,} of them cannot be read.")
  return 0


if __name__ == "__main__":
  run_command(main)
