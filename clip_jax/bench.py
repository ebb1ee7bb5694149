"""Benchmarks: python -m clip_jax.bench step|loss|data|checkpoint|all [--config=F] [--json=F]."""

import json
from typing import Any

from clip_jax.cli.command import run_command

HELP = """Measures how fast a config trains here, and how close that is to what the machine can do.

  python -m clip_jax.bench step|loss|data|checkpoint|all [--config=FILE] [--json=FILE]
      [--profile=DIR] [--config.a.b=value ...]

  step        the train step alone: its share of the matrix-multiply ceiling, measured in the same
              run; the shares of the towers, loss, optimizer and augmentation; images/s, compile
              time and memory
  loss        time and memory of every loss, dense and in chunks of rows, from 1k to 64k rows
  data        images/s of the config's input pipeline alone, compared with a plain loop over the
              same operations; then of JPEGs of three sizes, compared with Pillow alone, including
              the difference in pixels
  checkpoint  the stall of a step that saves, and the time to save and to restore
  all         all of them

  --config=FILE[:ARGUMENT]   config to measure (default configs/quickstart.py)
  --config.a.b=VALUE         overrides a value of the config
  --json=FILE                also writes the numbers to a file
  --profile=DIR              step only: saves a trace for TensorBoard and Perfetto, and prints the
                             ten instructions that take most of the device's time

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""
BENCHES = ("step", "loss", "data", "checkpoint")


def main(arguments: list[str]) -> int:
  """Runs the command and returns its exit code."""
  from clip_jax.cli.flags import check_output, parse
  from clip_jax.config import call_part
  from clip_jax.errors import UserError
  from clip_jax.files import write_atomically

  if not arguments or arguments[0].startswith("-"):
    arguments = ["", *arguments]
  what, *rest = arguments
  if not any(a.startswith("--config=") for a in rest):
    rest = ["--config=quickstart", *rest]
  flags = parse(rest, HELP, config=True, make_call=call_part, strings=("json", "profile"))
  if what not in (*BENCHES, "all"):
    raise UserError(
      f"Unknown bench {what!r}. Expected one of {', '.join(BENCHES)}, all, as in "
      "python -m clip_jax.bench step."
    )
  if flags.profile and what not in ("step", "all"):
    raise UserError(f"--profile applies to bench step, not to bench {what}. Leave it out.")
  check_output(flags.json, "--json")
  from clip_jax.benches.machine import machine
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  print(f"machine: {machine()}\n")
  numbers = {}
  for name in BENCHES if what == "all" else (what,):
    numbers[name] = measure(name, flags)
    print(format_numbers(name, numbers[name]) + "\n")
  if flags.json:
    content = {"machine": machine(), **(numbers if what == "all" else numbers[what])}
    write_atomically(flags.json, json.dumps(content, indent=2) + "\n")
  return 0


def measure(name: str, flags: Any) -> dict[str, Any]:
  """Runs one benchmark and returns its numbers."""
  if name == "loss":
    from clip_jax.benches.bench_loss import bench_loss

    return bench_loss()
  from clip_jax.training.setup import build_setup

  setup = build_setup(flags.config)
  if name == "step":
    from clip_jax.benches.bench_step import bench_step

    return bench_step(setup, flags.profile)
  if name == "data":
    from clip_jax.benches.bench_data import bench_data

    return bench_data(setup)
  from clip_jax.benches.bench_checkpoint import bench_checkpoint

  return bench_checkpoint(setup)


def format_numbers(name: str, numbers: dict) -> str:
  """Formats the numbers as a table: one row per number, or per dict of numbers."""
  from clip_jax.cli.formatting import table

  first = next(iter(numbers.values()))
  if not isinstance(first, dict):
    return table(numbers.items(), header=(f"bench {name}", ""))
  return table(
    [
      (row, *("-" if value is None else value for value in columns.values()))
      for row, columns in numbers.items()
    ],
    header=(f"bench {name}", *first),
  )


if __name__ == "__main__":
  run_command(main)
