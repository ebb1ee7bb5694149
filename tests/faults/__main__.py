"""Tries faults and prints what survives them: python -m tests.faults --rounds=N."""

import os
from pathlib import Path
import sys

from clip_jax.cli.command import run_command
from clip_jax.cli.flags import parse
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

HELP = """Tries faults at random and prints what survives them.

  python -m tests.faults --rounds=5
  python -m tests.faults --kinds=damage --rounds=200

  --rounds=N     faults of each kind (default 1), but a single long run
  --kinds=A,B    kinds, or groups of them (kills, disk, damage, long), all by default:
{kinds}
  --seed=S       seed of the faults (default 0)

A fault is survived if the command ends with a documented exit code, without a traceback, within
three minutes and under 2 GB of memory, and nothing that was saved is lost: after a kill, rerunning
the command ends bit for bit like a run that nothing interrupted.

Exit codes: 0 everything survived, 1 something did not, 2 a mistake in the command.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from faults.kinds import GROUPS, TITLES

  help_ = HELP.format(kinds="\n".join(f"    {kind:<20} {what}" for kind, what in TITLES.items()))
  flags = parse(arguments, help_, strings=("rounds", "kinds", "seed"))
  rounds, seed = number("rounds", flags.rounds, 1), number("seed", flags.seed, 0)
  wanted = []
  for name in filter(None, (flags.kinds or ",".join(GROUPS)).split(",")):
    if name not in GROUPS and name not in TITLES:
      known = [*GROUPS, *TITLES]
      raise UserError(
        f"There is no kind {name!r} of faults; there are {', '.join(known)}."
        f"{did_you_mean(name, known)}"
      )
    wanted += GROUPS.get(name, [name])
  from faults.kinds import attempts
  from faults.rounds import Count, format_counts, run_rounds

  counts: dict[str, Count] = {}
  say = lambda line: print(line, flush=True)
  tried = {kind: 1 if kind in GROUPS["long"] else rounds for kind in wanted}
  try:
    run_rounds({kind: attempts()[kind] for kind in wanted}, tried, seed, say, counts)
  finally:
    print(f"\n{format_counts(counts, TITLES)}")
  return int(any(count.survived < count.tried for count in counts.values()))


def number(name: str, text: str | None, default: int) -> int:
  """Returns the value of a flag that is a whole number."""
  if text is not None and not text.isdecimal():
    raise UserError(f"--{name}={text} is not a whole number, such as --{name}=3.")
  return default if text is None else int(text)


if __name__ == "__main__":
  # As in pytest; the commands that are started here get their own.
  os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8")
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  sys.path.insert(0, str(Path(__file__).parents[1]))
  run_command(main)
