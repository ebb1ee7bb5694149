"""Trains: python -m clip_jax.train --config=FILE --workdir=DIR [--config.a.b=value ...]."""

from clip_jax import cli

HELP = """Trains the model that a config file describes.

  python -m clip_jax.train --config=configs/quickstart.py --workdir=DIR [--config.a.b=value ...]

  --config=FILE[:ARGUMENT]   a Python file with get_config(), and a string for it
  --config.a.b=VALUE         replaces a value of the config; --print shows all there are
  --workdir=DIR              everything is written here; a run that lies here is gone on with
  --print                    prints the complete config and does nothing
  --explain                  prints where each array of the train state lies and does nothing
  --coordinator=HOST:PORT --processes=N --process=I
                             one of N processes, of which number 0 listens there; SLURM, Google
                             Kubernetes Engine and TPU VMs say so themselves

Ctrl-C saves after the step under way; a second one does not wait. What was compiled is kept in
~/.cache/clip_jax, or where JAX_COMPILATION_CACHE_DIR says.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else,
75 saved after SIGTERM: start it again.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.flags import parse
  flags = parse(arguments, HELP, config=True, switches=("print", "explain"),
                strings=("workdir", "coordinator", "processes", "process"))
  if flags.print:
    from clip_jax.config import to_json
    print(to_json(flags.config))
    return 0
  if flags.explain:
    from clip_jax.parts import explanation, prepare
    print(explanation(prepare(flags.config)))
    return 0
  from clip_jax.errors import UserError
  if not flags.workdir:
    raise UserError("Where should the run be written? Set --workdir=DIR.")
  from clip_jax import distributed
  distributed.start(flags.coordinator, flags.processes, flags.process)
  from jax.errors import JaxRuntimeError

  from clip_jax.loop import run
  try:
    return run(flags.config, flags.workdir)
  except JaxRuntimeError as e:
    from clip_jax.bringup import silent
    if others := silent():
      # A lost connection is the loss of those; anything else happened to this process alone.
      e.add_note(f"{distributed.counted(others)} did not fail with this one. If this is about a "
                 "connection, look at the end of their logs: they are gone. Started again, all go "
                 "on from the last checkpoint.")
    raise


if __name__ == "__main__":
  cli.command(main)
