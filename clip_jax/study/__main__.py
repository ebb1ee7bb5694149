"""The command line of the study: python -m clip_jax.study run, advise, predict and more."""

import json
from pathlib import Path

from clip_jax.cli.command import run_command
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

HELP = """Trains grids of runs, and analyses your runs and the paper's numbers.

  python -m clip_jax.study run --grid=FILE[:ARGUMENT] --out=DIR [--jobs=N] [--retries=2]
                               [--shard=I/N] [--dry-run] [--accelerator=h200] [--utilisation=0.4]
  python -m clip_jax.study table --runs=CSV,... [--metric=i2t_r10,zero_shot]
  python -m clip_jax.study figures --out=DIR [--runs=CSV,...]
  python -m clip_jax.study fit [--out=FILE.json]
  python -m clip_jax.study laws [--runs=CSV,...] [--out=FILE.csv]
  python -m clip_jax.study calibrate [--metric=zero_shot,...] [--out=FILE.csv] [--figure=FILE.png]
  python -m clip_jax.study predict --arch=ViT-B/32 | --parameters=150M --forward_gflops=15
                               --pairs=50M --samples=400M [--corpus=datacomp|laion|webli|...]
                               [--objective=clip|siglip|captioning|coca|slip|flip|da]
                               [--quality=100] [--metric=zero_shot,...] [--batch=4096]
                               [--learning_rate=1e-3] [--warmup=2000] [--runs=CSV,...] [--json]
  python -m clip_jax.study advise --pairs=50M --compute=1e20 | --samples=3.4B | --hours=24
                               [--chips=8] [--accelerator=h100] [--mfu=0.3] [--corpus=laion]
                               [--metric=zero_shot] [--runs=CSV,...] [--top=3] [--out=recipe.py]
                               [--json]
  python -m clip_jax.study advise --map=FILE.png [--corpus=laion] [--metric=zero_shot]
  python -m clip_jax.study verdicts --runs=CSV,... [--public] [--out=FILE.csv]

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
  fit        fits the pooled law, one law of error for all public runs and the paper's, to every
             metric; --out stores its parameters, which predict and advise read
  laws       fits separate laws of error against data, compute and model size to each series of
             your runs, or of the paper without --runs, and reports how well they predict the
             largest run
  calibrate  predicts public runs from fits without their corpus, size or model, and prints how
             many are inside their 90% interval, the mean error in points, and the rank correlation
             among models at one budget
  predict    predicts the accuracy of a model, with a 90% interval. --pairs are distinct, --samples
             count repetitions. Without --corpus the data is of another kind, and the interval
             wider; without --batch, --learning_rate and --warmup they are tuned, or those of the
             corpus' published runs. --quality: percent of the pool that is kept, best first
  advise     recommends a recipe for a number of pairs and a training budget, with the two next,
             their 90% intervals and the run that would decide between them. --out writes the
             recipe as a config for train and plan; --runs adds runs of yours to the evidence;
             --map draws the best recipe for 1M to 1B pairs and 1e17 to 1e22 FLOPs
  verdicts   checks which of the paper's claims hold in your runs; --public: in public runs

--accelerator and --utilisation or --mfu (of its peak FLOP/s) convert between hours and FLOPs.
--hours are those of each of --chips accelerators.

Exit codes: 0 done, 2 a mistake in the command, 3 the evidence says nothing about the question,
130 stopped by Ctrl-C, 1 any other error, including failed runs, 75 saved after SIGTERM: rerun the
command to resume.
"""


def main(arguments: list[str]) -> int | None:
  """Runs the command; returns its exit code."""
  from clip_jax.cli.flags import parse

  commands = {
    "run": _run,
    "one": _one,
    "table": _table,
    "figures": _figures,
    "fit": _fit,
    "laws": _laws,
    "calibrate": _calibrate,
    "predict": _predict,
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
      f"python -m clip_jax.study advise --pairs=50M --samples=3.4B.{did_you_mean(what, commands)}"
    )
  strings, switches = {
    "run": (
      ("grid", "out", "jobs", "retries", "shard", "accelerator", "utilisation"),
      ("dry-run",),
    ),
    "one": (("grid", "out", "name", "fingerprint"), ()),
    "table": (("runs", "metric"), ()),
    "figures": (("runs", "out"), ()),
    "fit": (("out",), ()),
    "laws": (("runs", "out"), ()),
    "calibrate": (("metric", "out", "figure"), ()),
    "predict": (
      (
        "arch",
        "parameters",
        "forward_gflops",
        "pairs",
        "samples",
        "corpus",
        "objective",
        "quality",
        "metric",
        "batch",
        "learning_rate",
        "warmup",
        "runs",
      ),
      ("json",),
    ),
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
        "chips",
        "mfu",
        "corpus",
        "out",
        "map",
      ),
      ("json",),
    ),
    "verdicts": (("runs", "out"), ("public",)),
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
  from clip_jax.study import law_store

  found = law_store.fit_laws()
  print(law_store.format_laws(found))
  if flags.out:
    law_store.write_laws(found, Path(flags.out))


def _laws(flags):
  from clip_jax.study import law_fits, runs_table

  found = law_fits.fit_all(_results(flags) or runs_table.paper_results())
  print(law_fits.format_laws(found))
  if flags.out:
    law_fits.write_csv(found, Path(flags.out))


def _calibrate(flags):
  from clip_jax.cli.progress import Progress, log
  from clip_jax.study import calibration, law_store

  metrics = (flags.metric or ",".join(calibration.METRICS)).split(",")
  schemes = {m: calibration.METRICS.get(m, calibration.OTHER_SCHEMES) for m in metrics}
  laws = {metric: law_store.stored_law(metric) for metric in metrics}
  fits = sum(calibration.number_of_fits(laws[metric], schemes[metric]) for metric in metrics)
  progress, found = Progress(fits, log, "fits", last=False), []
  for number, metric in enumerate(metrics):
    held = calibration.held_out_runs(laws[metric], schemes[metric], progress.add)
    found += calibration.summarize(metric, held)
    if flags.figure and number == 0:
      from clip_jax.study import calibration_plot

      calibration_plot.draw(metric, held, Path(flags.figure))
  print(calibration.format_calibration(found))
  if flags.out:
    calibration.write_csv(found, Path(flags.out))


def _predict(flags):
  from clip_jax.study import forecasts

  print(forecasts.run_command(flags))


def _advise(flags):
  from clip_jax.study import accelerators, advice, advice_report, own_runs
  from clip_jax.study.forecasts import count_flag

  if flags.map:
    _map(flags)
    return
  given = [name for name in ("compute", "samples", "hours") if getattr(flags, name)]
  if not flags.pairs or len(given) != 1:
    raise UserError(
      "advise needs --pairs and exactly one of --compute (FLOPs), --samples and --hours (of each "
      "of --chips accelerators), as in --pairs=50M --compute=1e20."
    )
  if flags.mfu and flags.utilisation:
    raise UserError("--mfu and --utilisation are the same; give one of them.")
  flags.utilisation = flags.mfu or flags.utilisation
  machine = _machine(flags)
  compute = count_flag("compute", flags.compute)
  if flags.hours:
    hours = count_flag("hours", flags.hours) * _number(flags, "chips", int, 1)
    compute = hours * accelerators.flops_per_hour(**machine)
  metric = flags.metric or "zero_shot"
  found = advice.advise(
    count_flag("pairs", flags.pairs),
    compute=compute,
    samples=count_flag("samples", flags.samples),
    metric=metric,
    corpus=flags.corpus or "",
    runs=own_runs.read_own_runs(flags.runs)(metric),
  )
  if flags.json:
    print(json.dumps(advice_report.as_json(found, **machine), indent=2))
  else:
    print(advice_report.format_advice(found, **machine, top=_number(flags, "top", int, 3)))
  if flags.out:
    recipe = advice_report.write_recipe(found, Path(flags.out))
    if not flags.json:
      print(f"Wrote {flags.out}, which trains {recipe.name}")


def _map(flags):
  from clip_jax.cli.flags import check_output
  from clip_jax.study import advice_map
  from clip_jax.study.plots import import_matplotlib

  others = ("pairs", "compute", "samples", "hours", "chips", "runs", "top", "out", "json")
  unused = [f"--{name}" for name in others if getattr(flags, name)]
  if unused:
    raise UserError(
      f"--map draws many numbers of pairs and budgets, and does not use {', '.join(unused)}. "
      "Leave them out, or leave out --map."
    )
  if not flags.map.endswith(".png"):
    raise UserError(f"--map={flags.map} is not a PNG file. Choose a name such as map.png.")
  check_output(flags.map, "--map")
  import_matplotlib()
  metric = flags.metric or "zero_shot"
  advice_map.draw(advice_map.places(metric, flags.corpus or ""), Path(flags.map), metric)
  print(f"Drew {flags.map}.")


def _verdicts(flags):
  from clip_jax.study import claim_checks

  found = []
  if flags.runs or not flags.public:
    _required(flags, "runs", "DIR/runs.csv")
    found = claim_checks.check_claims(_results(flags))
  if flags.public:
    from clip_jax.study import public_claims

    found += public_claims.check_public_claims()
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

  value = getattr(flags, name)
  if not value:
    raise UserError(f"--{name} is required, as in --{name}={example}.")
  return value


def _machine(flags):
  from clip_jax.study.accelerators import UTILISATION

  return {
    "accelerator": flags.accelerator or "h200",
    "utilisation": _number(flags, "utilisation", float, UTILISATION),
  }


def _number(flags, name, kind, default):
  from clip_jax.cli.quantities import quantity

  text = getattr(flags, name)
  try:
    return default if text is None else quantity(text) if kind is int else kind(text)
  except ValueError:
    raise UserError(f"--{name}={text} is not a number, as in --{name}=2.") from None


if __name__ == "__main__":
  run_command(main)
