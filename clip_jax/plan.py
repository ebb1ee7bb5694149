"""Plans: python -m clip_jax.plan --config=FILE --topology=v5e:16x16."""

import json
import os

from clip_jax import cli

HELP = """Says whether a config fits a pod, how fast it can go there, and what that takes.

  python -m clip_jax.plan --config=FILE --topology=v5e:16x16 [--json=FILE] [--config.a.b=value ...]

  --config=FILE[:ARGUMENT]   the config of a training run
  --config.a.b=VALUE         replaces a value of the config
  --topology=CHIP:SIDES      as v5e:16x16, v4:4x4x4, 2xv5e:16x16 (two slices), h100:8; "all"
                             compares 64 chips of each TPU
  --json=FILE                writes the numbers there as well
  --images_per_core=N        images a second that one virtual CPU of a host makes ready (`python -m
                             clip_jax.bench data` measures it), 200 if not given
  --explain                  prints where each array of the train state lies instead

The real train step is compiled for the topology, which needs none of its chips but a compiler for
them and minutes: libtpu (pip install 'scaling-clip-jax[tpu]') for TPUs, and for GPUs JAX's CUDA
plugin (pip install 'scaling-clip-jax[cuda]'), without a driver. What does not fit is tried again
with rematerialisation, microbatches, FSDP and smaller batches. Without a compiler, what only it
knows is missing. Programs for GPUs are not tuned, as there is none to try them on: memory is that
of the program, traffic and time are approximate.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # It plans for chips; it needs none, and must not hold any.
  from clip_jax.errors import UserError
  from clip_jax.flags import parse
  flags = parse(arguments, HELP, config=True, switches=("explain",),
                strings=("topology", "json", "images_per_core"))
  if not flags.topology:
    raise UserError("Plan for what? Set --topology=CHIP:SIDES, as in --topology=v5e:16x16, or all.")
  images = _number(flags.images_per_core)
  from clip_jax.planning.chips import COMPARED, topology
  topologies = [topology(t) for t in (COMPARED if flags.topology == "all" else [flags.topology])]
  if flags.explain:
    from clip_jax.planning.estimate import explained
    print(explained(flags.config, topologies[0]))
    return 0
  plans = _compared(flags.config, topologies, images) if len(topologies) > 1 else _planned(
      flags.config, topologies[0], images)
  if flags.json:
    with open(flags.json, "w") as f:
      json.dump(plans, f, indent=2)
  return 0


def _planned(config, topology, options):
  """Prints the plan for one topology and, if it does not fit, what would; all of it as JSON."""
  from clip_jax.planning import knobs, lines
  from clip_jax.planning.estimate import as_json, estimate
  plan = estimate(config, topology, **options)
  print(lines.described(plan), flush=True)
  numbers = as_json(plan)
  if plan.fits is False:
    print("\nIt does not fit. Trying what would make it fit ...", flush=True)
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    attempts = list(knobs.tried(config, lambda c: estimate(c, topology, **options), shards=shards))
    print(lines.compared([(knob, one) for knob, _, one in attempts], "with"))
    for knob, setting, one in attempts:
      print(f"{knob}: {knobs.flags(setting)}" + ("" if one.fits else "  (does not fit either)"))
    numbers["tried"] = [{"knob": knob, "setting": setting, **as_json(one)}
                        for knob, setting, one in attempts]
  return numbers


def _compared(config, topologies, options):
  """Prints a row for each topology; all of them as JSON."""
  from clip_jax.planning import lines
  from clip_jax.planning.estimate import as_json, estimate
  plans = [(str(t), estimate(config, t, **options)) for t in topologies]
  print(lines.compared(plans, "topology"))
  for note in dict.fromkeys(note for _, plan in plans for note in plan.notes):
    print(f"note: {note}")
  return [as_json(plan) for _, plan in plans]


def _number(text):
  from clip_jax.errors import UserError
  if text is None:
    return {}
  try:
    value = float(text)
  except ValueError:
    value = 0
  if value <= 0:
    raise UserError(f"--images_per_core={text} is not a number above 0, as in "
                    "--images_per_core=200.")
  return {"images_per_core": value}


if __name__ == "__main__":
  cli.command(main)
