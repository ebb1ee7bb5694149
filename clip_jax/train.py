"""Train a model: python -m clip_jax.train --config=FILE --workdir=DIR [--config.a.b=value ...]."""

from clip_jax.cli.command import run_command

HELP = """Trains the model described by a config file.

  python -m clip_jax.train --config=configs/quickstart.py --workdir=DIR [--config.a.b=value ...]

  --config=FILE[:ARGUMENT]   Python file with get_config(), and an optional string argument for it
  --config.a.b=VALUE         overrides a value of the config; --print shows all of them
  --config.a.b="PART(...)"   replaces a part, as in --config.objective="Siglip()" by another
  --workdir=DIR              folder for all output; a run that is already there is resumed
  --print                    prints the complete config and exits
  --explain                  prints the sharding of each array of the train state and exits
  --coordinator=HOST:PORT --processes=N --process=I
                             runs process I of N, where process 0 listens at HOST:PORT; detected
                             automatically on SLURM, Google Kubernetes Engine and TPU VMs

Ctrl-C saves after the current step and stops; a second one stops at once. Compiled programs are
cached in ~/.cache/clip_jax, or in JAX_COMPILATION_CACHE_DIR if that is set.

Exit codes: 0 done, 1 any other error, 2 a mistake in the command, 3 trained and saved, but an
evaluator failed: rerun the command to evaluate what is missing, 75 saved after SIGTERM, or another
process of the run was lost: rerun the command to resume, 130 stopped by Ctrl-C.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.cli.flags import parse
  from clip_jax.config import call_part

  flags = parse(
    arguments,
    HELP,
    config=True,
    make_call=call_part,
    switches=("print", "explain"),
    strings=("workdir", "coordinator", "processes", "process"),
  )
  from clip_jax.training.experiment import check_sections

  check_sections(flags.config)
  if flags.print:
    from clip_jax.config import to_json

    print(to_json(flags.config))
    return 0
  if flags.explain:
    from clip_jax.training.setup import build_setup, sharding_table

    print(sharding_table(build_setup(flags.config)))
    return 0
  from clip_jax.errors import UserError

  if not flags.workdir:
    raise UserError("No output folder is given. Set --workdir=DIR.")
  from clip_jax.parallel import rendezvous
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  with rendezvous.start(flags.coordinator, flags.processes, flags.process):
    from clip_jax.study.run_hints import hyperparameter_hints
    from clip_jax.training.loop import run

    return run(flags.config, flags.workdir, hints=hyperparameter_hints)


if __name__ == "__main__":
  run_command(main)
