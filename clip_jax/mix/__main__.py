"""Mixes models in weight space: python -m clip_jax.mix --models=A,B --suite=S --out=DIR."""

from clip_jax.cli.command import run_command

HELP = """Evaluates mixes of models and writes the best one.

  python -m clip_jax.mix --models=A,B --suite=S --metrics=OLD,NEW --out=DIR
                         [--alpha=0.0:1.0:0.1] [--format=run] [--results=F.json] [--picture=F.png]
  python -m clip_jax.mix --models=A,B,C,... --suite=S --metrics=M --out=DIR

  --models=A,B         a model and one that was fine-tuned from it: evaluates the line between them,
                       (1 - alpha) A + alpha B (WiSE-FT)
          =A,B,C,...   more models: evaluates each of them and their mean (a soup)
  --alpha=A:B:STEP     the mixes of two models, from A to B
        =X,Y,...       or these
  --suite=FILE[:ARG]   a config of evaluators, as for clip_jax.evaluate
  --suite.NAME.x=VALUE override a value of the suite
  --metrics=M,...      metrics of the suite, as retrieval/text_to_image_r10; the mix with the
                       highest mean of them is the best one. Of two, the first is that of the old
                       task and the second that of the new one in the picture
  --out=DIR            where to write the best mix
  --format=run         a workdir for clip_jax.load and train.init_from (the default; the last model
                       must be a run), or open_clip, huggingface or big_vision
  --results=F.json     write all metrics of all mixes to this file
  --picture=F.png      draw the second metric against the first; needs matplotlib
  --trust=MODULE,...   modules outside clip_jax that the configs of runs may call

The suite should not be the test set: the choice between the mixes is fitted to it.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""
FORMATS = ("run", "open_clip", "huggingface", "big_vision")


def main(arguments: list[str]) -> int:
  """Runs the command and returns its exit code."""
  from pathlib import Path

  from clip_jax.cli.flags import check_output, parse
  from clip_jax.errors import UserError

  strings = ("models", "alpha", "metrics", "out", "format", "results", "picture", "trust")
  has_suite = any(a.startswith(("--suite=", "--suite.")) for a in arguments)
  flags = parse(arguments, HELP, config="suite" if has_suite else False, strings=strings)
  models = [name for name in (flags.models or "").split(",") if name]
  if len(models) < 2:
    raise UserError("Which models? Set --models=A,B with two or more of them.")
  form = flags.format or "run"
  if form not in FORMATS:
    raise UserError(f"--format={form} is not one of {', '.join(FORMATS)}.")
  weights = _weights(flags.alpha, len(models))
  if not has_suite:
    raise UserError(
      "How are the mixes compared? Set --suite=FILE, such as evaluations/openclipart."
    )
  if not flags.out or not flags.metrics:
    raise UserError("Set --out=DIR, and --metrics=NAME,... for the choice of the best mix.")
  metrics = flags.metrics.split(",")
  if flags.picture and len(metrics) != 2:
    raise UserError(
      f"--picture draws two metrics, but --metrics={flags.metrics} names another number."
    )
  for name in ("results", "picture"):
    check_output(getattr(flags, name), f"--{name}")
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  results, bundles = _evaluated(models, weights, flags.suite, metrics, trust)
  score = lambda i: sum(results[i][name] for name in metrics)
  best = max(range(len(weights)), key=score)
  _report(models, weights, results, metrics, best)
  _write(bundles, weights[best], models[-1], form, Path(flags.out), trust)
  print(f"Wrote the mix {_named(weights[best])} to {flags.out} ({form}).")
  if flags.results:
    _save(flags.results, models, weights, results, best)
  if flags.picture:
    _draw(flags.picture, weights, results, metrics, best)
  return 0


def _weights(alpha, models):
  """Returns the weights of the models in each mix."""
  import re

  from clip_jax.errors import UserError

  if models > 2:
    if alpha:
      raise UserError(f"--alpha={alpha} is for two models; of {models}, the mean is evaluated.")
    single = [tuple(float(i == j) for i in range(models)) for j in range(models)]
    return [*single, (1 / models,) * models]
  text, number = alpha or "0.0:1.0:0.1", r"\d*\.?\d+(?:e-?\d+)?"
  if re.fullmatch(rf"{number}:{number}:{number}", text):
    low, high, step = map(float, text.split(":"))
    count = round((high - low) / step) + 1 if step > 0 else 0
    alphas = [min(round(low + i * step, 10), high) for i in range(count)]
  elif re.fullmatch(rf"{number}(,{number})*", text):
    alphas = [float(x) for x in text.split(",")]
  else:
    alphas = []
  if not alphas or len(alphas) > 1000 or not all(0 <= a <= 1 for a in alphas):
    raise UserError(
      f"--alpha={text} is not FROM:TO:STEP or a list of numbers from 0 to 1, as in 0.0:1.0:0.1."
    )
  return [(1 - a, a) for a in alphas]


def _evaluated(models, weights, suite, metrics, trust):
  """Returns the metrics of each mix, and the models."""
  from clip_jax.config import build, check_values
  from clip_jax.errors import UserError
  from clip_jax.evaluators.embedding_cache import EmbeddingCache
  from clip_jax.evaluators.results import Context, evaluate_all
  from clip_jax.inference.loading import embedder_of_bundle, load_bundle
  from clip_jax.interfaces import Evaluator, check_part
  from clip_jax.mix.mixture_of_models import check_mixable, mixed

  check_values(suite, "suite")
  evaluators = {name: build(call) for name, call in suite.items()}
  for name, evaluator in evaluators.items():
    check_part(evaluator, Evaluator, f"suite.{name}")
  bundles = [load_bundle(name, trust=trust) for name in models]
  check_mixable(bundles, models)
  results = []
  for one in weights:
    context = Context(EmbeddingCache(embedder_of_bundle(mixed(bundles, one)), lambda line: None))
    evaluate_all(evaluators, context)
    results.append(context.metrics)
    missing = [name for name in metrics if name not in context.metrics]
    if missing:
      raise UserError(f"The suite has no metric {missing[0]}; it has {', '.join(context.metrics)}.")
    print(f"{_named(one)}  " + "  ".join(f"{n} {context.metrics[n]:.2f}" for n in metrics))
  return results, bundles


def _named(weights):
  if len(weights) == 2:
    return f"alpha={weights[1]:g}"
  return "mean of all" if len({*weights}) == 1 else f"model {weights.index(1.0) + 1}"


def _report(models, weights, results, metrics, best):
  from clip_jax.cli.formatting import number, table

  rows = [
    (_named(one), *(number(found[name]) for name in metrics), "best" if i == best else "")
    for i, (one, found) in enumerate(zip(weights, results))
  ]
  print("\n" + table(rows, header=("", *metrics, "")))
  print("\n" + "\n".join(f"model {i + 1}  {name}" for i, name in enumerate(models)) + "\n")


def _write(bundles, weights, last, form, out, trust):
  from clip_jax.errors import UserError
  from clip_jax.inference.loading import describe
  from clip_jax.mix.mixture_of_models import mixed, write_run
  from clip_jax.pretrained import big_vision, hugging_face, open_clip

  chosen = mixed(bundles, weights)
  if form == "run":
    config = describe(last, trust=trust).config
    if config is None:
      raise UserError(
        f"--format=run needs a run as the last model, but {last} is not one. Set --format to "
        f"{', '.join(FORMATS[1:])}."
      )
    write_run(chosen, config, out)
  else:
    modules = {"open_clip": open_clip, "huggingface": hugging_face, "big_vision": big_vision}
    modules[form].write(chosen, out)


def _save(file, models, weights, results, best):
  import json

  from clip_jax.files import write_atomically

  mixes = [{"weights": one, "metrics": found} for one, found in zip(weights, results)]
  content = {"models": models, "mixes": mixes, "best": best}
  write_atomically(file, json.dumps(content, indent=2) + "\n")


def _draw(file, weights, results, metrics, best):
  from clip_jax.cli.optional import optional
  from clip_jax.files import atomic_write

  optional("matplotlib", "figures")
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5, 4), layout="constrained")
  axes = figure.add_subplot()
  x, y = ([found[name] for found in results] for name in metrics)
  axes.plot(x, y, "o-" if len(weights[0]) == 2 else "o")
  axes.plot(x[best], y[best], "*", markersize=14)
  for one, old, new in zip(weights, x, y):
    axes.annotate(_named(one), (old, new), fontsize=7, xytext=(4, 4), textcoords="offset points")
  axes.set_xlabel(f"old: {metrics[0]}")
  axes.set_ylabel(f"new: {metrics[1]}")
  with atomic_write(file, "wb") as f:
    figure.savefig(f, format="png", dpi=150)


if __name__ == "__main__":
  run_command(main)
