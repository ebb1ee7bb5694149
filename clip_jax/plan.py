"""Plans a run on other hardware: python -m clip_jax.plan --config=FILE --topology=v5e:16x16."""

import json
import os

from clip_jax.cli.command import run_command

HELP = """Plans a training run on chips that you may not have: does it fit, and how fast can it be?

  python -m clip_jax.plan --config=FILE --topology=v5e:16x16 [--json=FILE] [--config.a.b=value ...]

  --config=FILE[:ARGUMENT]   the config of a training run
  --config.a.b=VALUE         overrides a value of the config
  --topology=CHIP:SIDES      such as v5e:16x16, v4:4x4x4, 2xv5e:16x16 (two slices) or h100:8; "all"
                             compares 64 chips of each TPU
  --json=FILE                also writes the numbers to a file
  --images_per_core=N        images per second that one virtual CPU of a host prepares, as measured
                             by `python -m clip_jax.bench data`; default 200
  --explain                  prints the sharding of each array of the train state instead

The real train step is compiled for the topology. That takes minutes and needs a compiler but none
of the chips: libtpu for TPUs (pip install 'scaling-clip-jax[tpu]'), or JAX's CUDA plugin for GPUs
(pip install 'scaling-clip-jax[cuda]'), without a driver. If the step does not fit, it is compiled
again with rematerialisation, microbatches, FSDP and smaller batches. Without a compiler, the plan
leaves out what only a compiled program shows. Programs for GPUs are not autotuned, because that
needs a GPU: the memory is that of the program, but traffic and time are approximate.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""


def main(arguments: list[str]) -> int:
  """Runs the command and returns its exit code."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # Planning needs no accelerator, and must not reserve one.
  from clip_jax.cli.flags import check_output, parse
  from clip_jax.config import call_part
  from clip_jax.errors import UserError
  from clip_jax.files import write_atomically

  flags = parse(
    arguments,
    HELP,
    config=True,
    make_call=call_part,
    switches=("explain",),
    strings=("topology", "json", "images_per_core"),
  )
  if not flags.topology:
    raise UserError(
      "--topology is missing. Set --topology=CHIP:SIDES, as in --topology=v5e:16x16, "
      "or --topology=all."
    )
  check_output(flags.json, "--json")
  images = _number(flags.images_per_core)
  from clip_jax.planning.chips import COMPARED_TOPOLOGIES, parse_topology

  topologies = [
    parse_topology(t)
    for t in (COMPARED_TOPOLOGIES if flags.topology == "all" else [flags.topology])
  ]
  if flags.explain:
    from clip_jax.planning.estimate import explain_shardings

    print(explain_shardings(flags.config, topologies[0]))
    return 0
  plans = (
    _compared(flags.config, topologies, images)
    if len(topologies) > 1
    else _planned(flags.config, topologies[0], images)
  )
  if flags.json:
    write_atomically(flags.json, json.dumps(plans, indent=2) + "\n")
  return 0


def _planned(config, topology, options):
  """Prints the plan for one topology, and settings to try if it does not fit; returns its JSON."""
  from clip_jax.planning import memory_options, plan_tables
  from clip_jax.planning.estimate import as_json, estimate

  plan = estimate(config, topology, **options)
  print(plan_tables.describe_plan(plan), flush=True)
  numbers = as_json(plan)
  if plan.fits is False:
    print("\nIt does not fit. Compiling settings that need less memory ...", flush=True)
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    attempts = list(
      memory_options.find_fitting(config, lambda c: estimate(c, topology, **options), shards=shards)
    )
    print(plan_tables.compare_plans([(option, one) for option, _, one in attempts], "with"))
    for option, setting, one in attempts:
      print(
        f"{option}: {memory_options.format_flags(setting)}"
        + ("" if one.fits else "  (does not fit either)")
      )
    numbers["tried"] = [
      {"option": option, "setting": setting, **as_json(one)} for option, setting, one in attempts
    ]
  return numbers


def _compared(config, topologies, options):
  """Prints a table with one row per topology; returns its JSON."""
  from clip_jax.cli.progress import Progress, log
  from clip_jax.planning import plan_tables
  from clip_jax.planning.estimate import as_json, estimate

  progress, plans = Progress(len(topologies), log, "topologies", every=0, last=False), []
  for topology in topologies:
    plans.append((str(topology), estimate(config, topology, **options)))
    progress.add(1)
  print(plan_tables.compare_plans(plans, "topology"))
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
    raise UserError(
      f"--images_per_core={text} is not a number above 0, such as --images_per_core=200."
    )
  return {"images_per_core": value}


if __name__ == "__main__":
  run_command(main)
