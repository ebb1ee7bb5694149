"""Measures: python -m clip_jax.bench step|loss|data|checkpoint|all [--config=F] [--json=F]."""

import json
from typing import Any

from clip_jax import cli

HELP = """Measures how fast a config trains here, and how near that is to what the machine can do.

  python -m clip_jax.bench step|loss|data|checkpoint|all [--config=FILE] [--json=FILE]
      [--profile=DIR] [--config.a.b=value ...]

  step        the training step alone: its share of the matrix-multiply ceiling measured in the same
              run, the shares of towers, loss, optimizer and augmentation in it, images/s, compile
              time, memory
  loss        every loss, dense and a block of rows at a time: time and memory, 1k to 64k rows
  data        images/s of the config's pipeline alone, beside a plain loop over the same operations;
              then of JPEGs of three sizes, beside Pillow alone, with the difference in pixels
  checkpoint  what a save costs the step, and its time to disk and back
  all         all of them

  --config=FILE[:ARGUMENT]   of which config (default configs/quickstart.py)
  --config.a.b=VALUE         replaces a value of the config
  --json=FILE                writes the numbers there as well
  --profile=DIR              for step: leaves a trace for TensorBoard and Perfetto there, and prints
                             the ten instructions that take most of the device's time

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""
BENCHES = ("step", "loss", "data", "checkpoint")


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.errors import UserError
  from clip_jax.flags import parse
  if not arguments or arguments[0].startswith("-"):
    arguments = ["", *arguments]
  what, *rest = arguments
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=configs/quickstart.py", *rest]
  flags = parse(rest, HELP, config=True, strings=("json", "profile"))
  if what not in (*BENCHES, "all"):
    raise UserError(f"Measure what? {what!r} is none of {', '.join(BENCHES)}, all, as in "
                    "python -m clip_jax.bench step.")
  if flags.profile and what not in ("step", "all"):
    raise UserError(f"--profile is for bench step, not for bench {what}. Leave it out.")
  from clip_jax.benches.machine import machine
  print(f"machine: {machine()}\n")
  numbers = {}
  for name in BENCHES if what == "all" else (what,):
    numbers[name] = measure(name, flags)
    print(shown(name, numbers[name]) + "\n")
  if flags.json:
    with open(flags.json, "w") as f:
      json.dump({"machine": machine(), **(numbers if what == "all" else numbers[what])}, f,
                indent=2)
  return 0


def measure(name: str, flags: Any) -> dict[str, Any]:
  """The numbers of one bench."""
  if name == "loss":
    from clip_jax.benches.loss import bench_loss
    return bench_loss()
  from clip_jax.parts import prepare
  parts = prepare(flags.config)
  if name == "step":
    from clip_jax.benches.step import bench_step
    return bench_step(parts, flags.profile)
  if name == "data":
    from clip_jax.benches.data import bench_data
    return bench_data(parts)
  from clip_jax.benches.checkpoint import bench_checkpoint
  return bench_checkpoint(parts)


def shown(name: str, numbers: dict) -> str:
  """The numbers as a table: a line each, or a line of columns where one has several."""
  from clip_jax.report import table
  first = next(iter(numbers.values()))
  if not isinstance(first, dict):
    return table(numbers.items(), header=(f"bench {name}", ""))
  return table([(row, *("-" if value is None else value for value in columns.values()))
                for row, columns in numbers.items()], header=(f"bench {name}", *first))


if __name__ == "__main__":
  cli.command(main)
