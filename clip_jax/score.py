"""Scores records with a model: python -m clip_jax.score --model=MODEL --source=S --out=F.npz."""

from typing import Any

from clip_jax.cli.command import run_command

HELP = """Writes the image-text similarity of each record according to a model, for ScoreFilter.

  python -m clip_jax.score --model=MODEL --out=FILE.npz [--source=S | --config=F ...]

  --model=MODEL        workdir of a training run, exported model, or checkpoint of another library
  --out=FILE.npz       output: one cosine similarity per record, in order; NaN for damaged records
  --source=S           records to score; by default those that the model was trained on:
                         openclipart or shapes       data included in the package
                         DIR, FILE or "DIR/name-*"   ArrayRecord or Parquet files
                         FILE.py                     Python file with a get_source(), or with a
                                                     get_config() that has a data.source
  --config=FILE        score the data.source of a config instead; --config.data.source.x=y overrides
                       its settings as in training
  --captions=mean      score of a record with several captions: mean (default) or max of their
                       similarities
  --shard=I/N          score only part I of N, counting from 0, to split the work between machines
                       that share the folder; the last one to finish merges the parts
  --trust=MODULE,...   modules besides clip_jax that the config of the model may call

Rerun an interrupted command to resume it. To train on the best records, put this in a config:
  source=call(ScoreFilter, source=..., scores="FILE.npz", keep="top 40%")

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.cli.flags import parse, shard
  from clip_jax.config import call_part
  from clip_jax.errors import UserError

  has_config = any(argument.startswith(("--config=", "--config.")) for argument in arguments)
  flags = parse(
    arguments,
    HELP,
    config=has_config,
    make_call=call_part,
    strings=("model", "source", "out", "captions", "shard", "trust"),
  )
  where = flags.model
  if not where:
    raise UserError("Which model? Set --model=MODEL, for example the workdir of a training run.")
  if not flags.out:
    raise UserError("Where should the scores be written? Set --out=FILE.npz.")
  if has_config and flags.source:
    raise UserError("--source and --config exclude each other; set only one of them.")
  part = shard(flags.shard)
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  if has_config:
    from clip_jax.config import build

    source = build(flags.config.data.source)
  elif flags.source:
    source = source_of(flags.source)
  else:
    source = trained_on(where, trust=trust)
  from clip_jax.inference.loading import load
  from clip_jax.inference.similarity import score
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  score(load(where, trust=trust), source, flags.out, shard=part, captions=flags.captions or "mean")
  return 0


def source_of(name: str) -> Any:
  """Returns the source that --source names."""
  import os

  if name == "openclipart":
    from clip_jax.data.sources.openclipart import OpenClipart

    return OpenClipart()
  if name == "shapes":
    from clip_jax.data.sources.shapes import Shapes

    return Shapes(10_000)
  if name.endswith(".py"):
    from clip_jax.cli.config_files import load_function, resolve
    from clip_jax.config import build

    if "def get_source" in resolve(name, "source")[0].read_text():
      return load_function(name, "get_source", "source")()
    config = load_function(
      name, "get_config", "source", " Add a get_source() that returns the source."
    )()
    return build(config.data.source if "data" in config else config)
  if name.endswith(".parquet") or (
    os.path.isdir(name) and any(file.endswith(".parquet") for file in os.listdir(name))
  ):
    from clip_jax.data.sources.parquet import Parquet

    return Parquet(name)
  from clip_jax.data.records import ArrayRecord

  return ArrayRecord(name)


def trained_on(where: str, *, trust: tuple[str, ...]) -> Any:
  """Returns the whole source that a run was trained on, regardless of its data.size."""
  from pathlib import Path

  from clip_jax.config import build, from_json
  from clip_jax.errors import UserError

  file = Path(where) / "config.json"
  if not file.is_file():
    raise UserError(
      f"{where} has no config.json, so its training data is unknown. Set --source=S "
      "to the records to score."
    )
  return build(from_json(file.read_text(), trust=trust).data.source)


if __name__ == "__main__":
  run_command(main)
