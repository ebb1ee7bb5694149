"""Scores records: python -m clip_jax.score --from=MODEL --source=S --out=FILE.npz."""

from typing import Any

from clip_jax import cli

HELP = """Writes how well image and text of each record go together, by a model, for Quality to cut.

  python -m clip_jax.score --from=MODEL --out=FILE.npz [--source=S | --config=F ...]

  --from=MODEL         the workdir of a training run, an exported model, or another library's
                       checkpoint
  --out=FILE.npz       one cosine similarity a record, in their order; NaN where one is damaged
  --source=S           what to score:
                         openclipart or shapes       what comes with the package
                         DIR, FILE or "DIR/name-*"   ArrayRecord or Parquet files
                         FILE.py                     a Python file with get_source(), or with
                                                     get_config(), of which data.source counts
                       without it, what a run was trained on
  --config=FILE        or the data.source of a config, with --config.data.source.x=y as in training
  --captions=mean      of a record with several captions: the mean of their similarities, or max
  --shard=I/N          this machine's part, I from 0 to N - 1, in a folder that all machines share;
                       whoever finishes last puts the parts together
  --trust=MODULE,...   modules beyond clip_jax that the model's config may call

A run that was killed goes on when it is started again. Then, in a config:
  source=call(Quality, source=..., scores="FILE.npz", keep="top 40%")

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.errors import UserError
  from clip_jax.flags import parse, shard
  has_config = any(argument.startswith(("--config=", "--config.")) for argument in arguments)
  flags = parse(arguments, HELP, config=has_config,
                strings=("from", "source", "out", "captions", "shard", "trust"))
  where = getattr(flags, "from")
  if not where:
    raise UserError("Which model? Set --from=MODEL, the workdir of a training run.")
  if not flags.out:
    raise UserError("Where should the scores be written? Set --out=FILE.npz.")
  if has_config and flags.source:
    raise UserError("--source and --config both say what to score; give one of them.")
  part = shard(flags.shard)
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  if has_config:
    from clip_jax.config import build
    source = build(flags.config.data.source)
  elif flags.source:
    source = source_of(flags.source)
  else:
    source = trained_on(where, trust=trust)
  from clip_jax.loading import load
  from clip_jax.scoring import score
  score(load(where, trust=trust), source, flags.out, shard=part,
        captions=flags.captions or "mean")
  return 0


def source_of(name: str) -> Any:
  """The source that --source names."""
  import os

  from clip_jax.errors import UserError
  if name == "openclipart":
    from clip_jax.data.sources.openclipart import OpenClipart
    return OpenClipart()
  if name == "shapes":
    from clip_jax.data.sources.shapes import Shapes
    return Shapes(10_000)
  if name.endswith(".py"):
    if not os.path.isfile(name):
      raise UserError(f"--source={name}: there is no such file.")
    import runpy
    made = runpy.run_path(name)
    if "get_source" in made:
      return made["get_source"]()
    if "get_config" not in made:
      raise UserError(f"--source={name} has neither get_source() nor get_config(). Write a "
                      "get_source() that returns the source.")
    from clip_jax.config import build
    config = made["get_config"]()
    return build(config.data.source if "data" in config else config)
  if name.endswith(".parquet") or (os.path.isdir(name) and any(
      file.endswith(".parquet") for file in os.listdir(name))):
    from clip_jax.data.sources.parquet import Parquet
    return Parquet(name)
  from clip_jax.data.records import ArrayRecord
  return ArrayRecord(name)


def trained_on(where: str, *, trust: tuple[str, ...]) -> Any:
  """The source that a run was trained on, without its data.size."""
  from pathlib import Path

  from clip_jax.config import build, from_json
  from clip_jax.errors import UserError
  file = Path(where) / "config.json"
  if not file.is_file():
    raise UserError(f"{where} does not tell what it was trained on (there is no config.json). Say "
                    "what to score: --source=S.")
  return build(from_json(file.read_text(), trust=trust).data.source)


if __name__ == "__main__":
  cli.command(main)
