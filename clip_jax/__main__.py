"""The command `clip-jax`: clip-jax COMMAND [flags], the same as python -m clip_jax.COMMAND."""

import importlib
import sys

from clip_jax.cli.command import run_command
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

COMMANDS = {
  "init": "start with your own pairs: prepare them, and write a config",
  "train": "train a model from a config",
  "evaluate": "measure a model: zero-shot, retrieval, probes",
  "search": "search a folder of pictures by text or by picture",
  "score": "score how well image and text of each record match",
  "prepare": "turn tars, tables, Parquet or folders into records for training",
  "export": "write a model for open_clip, Hugging Face or StableHLO",
  "plan": "memory, time and cost of a config on chips that are not there",
  "bench": "measure steps, losses, data and checkpoints on this machine",
  "embed": "store what a model's towers make of a data set, to train on it",
  "mix": "mix a model with one tuned from it (WiSE-FT), or average several",
  "study": "run grids, fit laws, ask what to train",
}
HELP = f"""clip-jax COMMAND [flags]

{chr(10).join(f"  {name:<10}{what}" for name, what in COMMANDS.items())}

clip-jax COMMAND --help explains a command. Start with
  clip-jax train --config=quickstart --workdir=DIR
or, with images and captions of your own,
  clip-jax init --from=captions.csv --out=DIR
"""


def main(arguments: list[str]) -> int | None:
  """Runs one of the commands; returns its exit code."""
  if not arguments or arguments[0] in ("--help", "-h", "help"):
    print(HELP.rstrip())
    return 0
  if arguments[0] == "--version":
    import clip_jax

    print(f"scaling-clip-jax {clip_jax.__version__}")
    return 0
  name, rest = arguments[0], arguments[1:]
  if name not in COMMANDS:
    raise UserError(
      f"There is no command {name!r}; there are {', '.join(COMMANDS)}."
      f"{did_you_mean(name, COMMANDS)}"
    )
  packages = ("embed", "init", "mix", "study")
  module = f"clip_jax.{name}.__main__" if name in packages else f"clip_jax.{name}"
  return importlib.import_module(module).main(rest)


def entry_point() -> None:
  """The console script."""
  run_command(main)


if __name__ == "__main__":
  sys.argv[0] = "clip-jax"
  entry_point()
