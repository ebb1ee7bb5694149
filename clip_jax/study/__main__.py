"""The command line of the study: python -m clip_jax.study run|table|figures|fit|advise|verdicts."""

from pathlib import Path

from clip_jax.cli.command import run_command

HELP = """Trains grids of runs, and analyses your runs and the paper's numbers.

  python -m clip_jax.study run --grid=FILE[:ARGUMENT] --out=DIR [--jobs=N] [--retries=2]
                               [--shard=I/N] [--dry-run] [--accelerator=h200] [--utilisation=0.4]
  python -m clip_jax.study table --runs=CSV,... [--metric=i2t_r10,zero_shot]
  python -m clip_jax.study figures --out=DIR [--runs=CSV,...]
  python -m clip_jax.study fit [--runs=CSV,...] [--out=FILE.csv]
  python -m clip_jax.study advise --pairs=50M --compute=1e20 | --samples=3.4B | --hours=100
                               [--accelerator=h200] [--utilisation=0.4] [--metric=zero_shot]
                               [--runs=CSV,...] [--top=10]
  python -m clip_jax.study verdicts --runs=CSV,... [--out=FILE.csv]

  run        trains the runs of a grid that are not done yet; rerun the command to resume. Writes
             one row per finished run to DIR/runs.csv.
             --jobs: concurrent runs, which share the GPUs or else the CPU cores
             --retries: how often a failed run is started again
             --shard: trains every N-th run starting at the I-th, for an array of machines
             --dry-run: only prints the runs, their cost and whether they are done
  table      prints a Markdown table with one row per kind of run: mean and standard deviation
             over seeds
  figures    draws the paper's figures from your runs, with the paper's points in grey; open
             DIR/index.html
  fit        fits scaling laws of error against data, compute and model size, and reports how well
             they predict the largest run
  advise     ranks recipes for a number of pairs and a training budget, with 90% intervals
  verdicts   checks which of the paper's claims hold in your runs

--accelerator and --utilisation (of its peak FLOP/s) convert between hours and FLOPs.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error, including
failed runs, 75 saved after SIGTERM: rerun the command to resume.
"""


def main(arguments: list[str]) -> int | None:
  """Runs the command; returns its exit code."""
  from clip_jax.cli.flags import parse
  from clip_jax.errors import UserError

  commands = {
    "run": _run,
    "one": _one,
    "table": _table,
    "figures": _figures,
    "fit": _fit,
    "advise": _advise,
    "verdicts": _verdicts,
  }
  what, *rest = arguments or [""]
  if {"--help", "-h"} & set(arguments):
    what, rest = "run", ["--help"]
  if what not in commands:
    raise UserError(
      f"Unknown command {what!r}; choose one of "
      f"{', '.join(name for name in commands if name != 'one')}, as in "
      "python -m clip_jax.study advise --pairs=50M --samples=3.4B."
    )
  strings, switches = {
    "run": (
      ("grid", "out", "jobs", "retries", "shard", "accelerator", "utilisation"),
      ("dry-run",),
    ),
    "one": (("grid", "out", "name", "fingerprint"), ()),
    "table": (("runs", "metric"), ()),
    "figures": (("runs", "out"), ()),
    "fit": (("runs", "out"), ()),
    "advise": (
      (
        "pairs",
        "compute",
        "samples",
        "hours",
        "accelerator",
        "utilisation",
        "metric",
        "runs",
        "top",
      ),
      (),
    ),
    "verdicts": (("runs", "out"), ()),
  }[what]
  return commands[what](parse(rest, HELP, strings=strings, switches=switches))


def _run(flags):
  from clip_jax.cli.flags import shard
  from clip_jax.study import grid as grid_lib, runner

  where = _required(flags, "grid", "configs/study/openclipart.py")
  grid, part = grid_lib.load(where), shard(flags.shard)
  if getattr(flags, "dry-run"):
    out = Path(flags.out).absolute() if flags.out else None
    print(runner.format_plan(list(grid.runs)[part[0] :: part[1]], out, **_machine(flags)))
    return 0
  out = Path(_required(flags, "out", "DIR")).absolute()
  (out / "runs").mkdir(parents=True, exist_ok=True)
  jobs = _number(flags, "jobs", int, max(1, len(runner.gpus())))
  return runner.Runner(
    where, grid, out, jobs=jobs, retries=_number(flags, "retries", int, 2), part=part
  ).run()


def _one(flags):
  from clip_jax.parallel.jax_private import protect_compiled_programs
  from clip_jax.study.run_result import run_one

  protect_compiled_programs()
  return run_one(flags.grid, flags.name, Path(flags.out), flags.fingerprint)


def _table(flags):
  from clip_jax.study import summary

  _required(flags, "runs", "DIR/runs.csv")
  print(
    summary.format_summary(_results(flags), (flags.metric or "").split(",") if flags.metric else ())
  )


def _figures(flags):
  from clip_jax.study import plots

  out = Path(_required(flags, "out", "DIR"))
  drawn = plots.draw_all(_results(flags), out)
  print(f"Drew {drawn} figures; open {out / 'index.html'}")


def _fit(flags):
  from clip_jax.study import law_fits, runs_table

  found = law_fits.fit_all(runs_table.paper_results() + _results(flags))
  print(law_fits.format_laws(found))
  if flags.out:
    law_fits.write_csv(found, Path(flags.out))


def _advise(flags):
  from clip_jax.data.subset import count
  from clip_jax.errors import UserError
  from clip_jax.study import advice, budgets

  budgets_given = [name for name in ("compute", "samples", "hours") if getattr(flags, name)]
  if not flags.pairs or len(budgets_given) != 1:
    raise UserError(
      "advise needs --pairs and exactly one of --compute (FLOPs), --samples and "
      "--hours (of one accelerator), as in --pairs=50M --compute=1e20."
    )
  compute = _number(flags, "compute", float, None)
  if flags.hours:
    compute = _number(flags, "hours", float, None) * budgets.flops_per_hour(**_machine(flags))
  samples = count(flags.samples, 0) if flags.samples else None
  print(
    advice.format_advice(
      advice.advise(
        count(flags.pairs, 0),
        compute=compute,
        samples=samples,
        runs=_results(flags),
        metric=flags.metric or "zero_shot",
      ),
      top=_number(flags, "top", int, 10),
    )
  )


def _verdicts(flags):
  from clip_jax.study import claim_checks

  _required(flags, "runs", "DIR/runs.csv")
  found = claim_checks.check_claims(_results(flags))
  print(claim_checks.format_checks(found))
  if flags.out:
    claim_checks.write_csv(found, Path(flags.out))


def _results(flags):
  from clip_jax.study import runs_table

  return [
    result
    for path in (flags.runs or "").split(",")
    if path
    for result in runs_table.read_results(path)
  ]


def _required(flags, name, example):
  from clip_jax.errors import UserError

  value = getattr(flags, name)
  if not value:
    raise UserError(f"--{name} is required, as in --{name}={example}.")
  return value


def _machine(flags):
  from clip_jax.study.budgets import UTILISATION

  return {
    "accelerator": flags.accelerator or "h200",
    "utilisation": _number(flags, "utilisation", float, UTILISATION),
  }


def _number(flags, name, kind, default):
  from clip_jax.cli.quantities import quantity
  from clip_jax.errors import UserError

  text = getattr(flags, name)
  try:
    return default if text is None else quantity(text) if kind is int else kind(text)
  except ValueError:
    raise UserError(f"--{name}={text} is not a number, as in --{name}=2.") from None


if __name__ == "__main__":
  run_command(main)
