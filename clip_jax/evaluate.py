"""Evaluates a model, as in `python -m clip_jax.evaluate --model=MODEL --suite=FILE`."""

from collections.abc import Mapping
from typing import Any

from clip_jax.cli.command import run_command

HELP = """Evaluates a model and records the settings, counts and standard errors of each result.

  python -m clip_jax.evaluate --model=MODEL --suite=evaluations/openclipart [--out=F.json]
  python -m clip_jax.evaluate --model=MODEL --classification=DIR [--templates=openai_80]
  python -m clip_jax.evaluate --model=MODEL --retrieval=F.csv [--image_root=DIR] [--out=F.json]
  python -m clip_jax.evaluate --model=MODEL --retrieval=DIR

  --model=MODEL              the workdir of a training run, an exported model, or another
                             library's checkpoint
  --suite=FILE[:ARGUMENT]    a Python file whose get_config(ARGUMENT) returns a ConfigDict of
                             evaluators; images are embedded once for all evaluators
  --suite.NAME.x=VALUE       override a value of the suite
  --only=NAME,...            run only these evaluators of the suite
  --classification=DIR       your own images, in one folder per class; DIR/classnames.json can name
                             the classes: {"folder": "name" or ["name", ...], ...}
  --templates=NAME           for --classification: none, openai_7, openai_80, a data set that OpenAI
                             published templates for (food101, ...), or a text file with one
                             template per line and {} where the class name goes
  --retrieval=F              your own captions: a table (.csv, .tsv, .jsonl or .json) with paths of
                             images and their captions, as for clip_jax.prepare --format=table; or a
                             folder of records that clip_jax.prepare wrote
  --image_root=DIR           for a table: folder that paths start from (default: that of the table)
  --image=NAME --text=NAME --delimiter=C --quotes=literal --on_error=skip --language=KEY
                             for a table: as for clip_jax.prepare
  --resize=MODE              for --classification and --retrieval: squash, crop (resize the shorter
                             side and crop the centre) or central_crop (the same with the central
                             0.875), instead of the model's own preprocessing
  --out=F.json               write settings, metrics, counts, standard errors and the model's
                             fingerprint to this file
  --trust=MODULE,...         modules outside clip_jax that the model's config may call
  --coordinator=HOST:PORT --processes=N --process=I
                             run as process I of N, as for clip_jax.train

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""

_TABLE_FLAGS = ("image_root", "image", "text", "delimiter", "quotes", "on_error", "language")


def main(arguments: list[str]) -> int:
  """Runs the command and returns its exit code."""
  from clip_jax.cli.flags import check_output, parse
  from clip_jax.config import call_part
  from clip_jax.errors import UserError

  has_suite = any(a.startswith(("--suite=", "--suite.")) for a in arguments)
  flags = parse(
    arguments,
    HELP,
    config="suite" if has_suite else False,
    make_call=call_part,
    strings=(
      "model",
      "only",
      "classification",
      "templates",
      "retrieval",
      *_TABLE_FLAGS,
      "resize",
      "out",
      "trust",
      "coordinator",
      "processes",
      "process",
    ),
  )
  where = flags.model
  if not where:
    raise UserError("Which model? Set --model=MODEL, such as the workdir of a training run.")
  suite = evaluators(flags, has_suite)
  if not suite:
    raise UserError(
      "Nothing to evaluate. Set --suite=FILE, --classification=DIR or "
      "--retrieval=F, as in --suite=configs/evaluations/openclipart.py."
    )
  check_output(flags.out, "--out")
  from clip_jax.parallel import rendezvous
  from clip_jax.parallel.jax_private import protect_compiled_programs

  protect_compiled_programs()
  with rendezvous.start(flags.coordinator, flags.processes, flags.process):
    _evaluate(flags, where, suite)
  return 0


def _evaluate(flags, where, suite):
  """Loads the model, and prints and writes the results of all evaluators."""
  import jax

  from clip_jax.evaluators.embedding_cache import EmbeddingCache
  from clip_jax.evaluators.results import Context, evaluate_all
  from clip_jax.inference.loading import load

  say = print if jax.process_index() == 0 else lambda line: None
  embedder = load(where, trust=tuple(filter(None, (flags.trust or "").split(","))))
  context = Context(EmbeddingCache(embedder, say))
  evaluate_all(suite, context, lambda name: say(f"{name}:"))
  if jax.process_index() == 0:
    report(context, where, flags.out)


def evaluators(flags: Any, has_suite: bool) -> dict[str, Any]:
  """Builds the evaluators that the flags select, by name."""
  from clip_jax.errors import UserError
  from clip_jax.evaluators.results import check_needs
  from clip_jax.evaluators.retrieval import Retrieval
  from clip_jax.evaluators.zero_shot import ZeroShot

  made, only = {}, list(filter(None, (flags.only or "").split(",")))
  unknown = [name for name in only if not has_suite or name not in flags.suite]
  if unknown:
    has = f"choose from {', '.join(flags.suite)}" if has_suite else "set --suite=FILE"
    raise UserError(f"--only={flags.only}: the suite has no {unknown[0]!r}; {has}.")
  if has_suite:
    from clip_jax.config import build, check_values
    from clip_jax.interfaces import Evaluator, check_part

    check_values(flags.suite, "suite")
    for name, call in flags.suite.items():
      if only and name not in only:
        continue
      if "fn" not in call:
        raise UserError(
          f"The suite's {name} is not a call of an evaluator; expected, for example, "
          "call(ZeroShot, ...). The suites that come with the package are evaluations/openclipart, "
          "evaluations/study and evaluations/icons."
        )
      made[name] = build(call)
      check_part(made[name], Evaluator, f"suite.{name}")
    check_needs(made)
  for flag in ("templates", "resize"):
    asking = [n for n in ("classification", "retrieval") if getattr(flags, n)]
    if getattr(flags, flag) and (not asking or (flag == "templates" and not flags.classification)):
      raise UserError(
        f"--{flag} applies only to --classification"
        f"{' and --retrieval' if flag == 'resize' else ''}; for a suite, set "
        f"--suite.NAME.{flag}=VALUE."
      )
  table = {name: getattr(flags, name) for name in _TABLE_FLAGS if getattr(flags, name) is not None}
  if table and not flags.retrieval:
    raise UserError(f"--{next(iter(table))} applies only to --retrieval=TABLE.")
  if flags.classification:
    source, classes = classification(flags.classification)
    made["classification"] = ZeroShot(
      source, classes, templates=flags.templates or "none", resize=flags.resize
    )
  if flags.retrieval:
    made["retrieval"] = Retrieval(captioned(flags.retrieval, table), resize=flags.resize)
  return made


def captioned(where: str, options: Mapping[str, Any]) -> Any:
  """Returns the source that --retrieval names: a caption table, or records that `prepare` wrote.

  Args:
    where: the table, or the folder of the records.
    options: of `CaptionTable`.
  """
  from collections import Counter
  from pathlib import Path

  from clip_jax.data.records import ArrayRecord
  from clip_jax.data.sources.caption_table import CaptionTable
  from clip_jax.errors import UserError

  file = Path(where)
  if file.is_dir() or "://" in where or ".array_record" in file.name:
    if options:
      raise UserError(f"--{next(iter(options))} applies only to a table, and {where} is not one.")
    return ArrayRecord(where)
  source = CaptionTable(where, **options)
  print(source.describe())
  for reason, n in Counter(left.reason for left in source.left_out).items():
    print(f"  left out: {n:,} {reason}")
  return source


def classification(folder: str) -> tuple[Any, dict[str, Any]]:
  """Returns the source of a folder with one subfolder per class, and the names of each subfolder.

  Raises:
    UserError: a class without images, or a `classnames.json` that is invalid or does not match the
      subfolders.
  """
  from pathlib import Path

  from clip_jax.cli.values import check_fields, shorten
  from clip_jax.data.sources.folder import Folder
  from clip_jax.data.untrusted import read_json
  from clip_jax.errors import UserError

  source = Folder(folder, captions=None)
  labels = set(source.labels)
  empty = [name for label, name in enumerate(source.classes) if label not in labels]
  if empty:
    raise UserError(
      f"{len(empty)} of the {len(source.classes)} classes in {folder} have no images: "
      f"{_some(empty)}. Add images, or remove these folders."
    )
  file = Path(folder) / "classnames.json"
  if not file.is_file():
    return source, {name: name.replace("_", " ") for name in source.classes}
  form = 'Expected {"folder": "name", ...}, where a name may also be a list of names.'
  names = read_json(file, dict, form)
  check_fields(names, dict.fromkeys(names, str | list[str]), str(file))
  unnamed = [name for name, value in names.items() if not value or not all(value)]
  if unnamed:
    raise UserError(f"{file}: {_some(unnamed)} is {shorten(names[unnamed[0]])}. {form}")
  for one, other, said in (
    (names, source.classes, "names without a folder"),
    (source.classes, names, "folders without a name"),
  ):
    extra = [name for name in one if name not in other]
    if extra:
      raise UserError(
        f"{file} does not match the folders next to it: {len(extra)} {said}: {_some(extra)}."
      )
  return source, {name: names[name] for name in source.classes}


def _some(names: list[str]) -> str:
  """Lists the first five names."""
  from clip_jax.cli.formatting import printable

  return ", ".join(printable(name)[:200] for name in names[:5]) + (
    ", ..." if len(names) > 5 else ""
  )


def report(context: Any, where: str, out: str | None) -> None:
  """Prints a table of the results and, if `out` is given, writes all details to that file."""
  import json

  import jax

  import clip_jax
  from clip_jax.cli.formatting import number, table
  from clip_jax.files import write_atomically
  from clip_jax.inference.similarity import model_fingerprint

  cache, rows = context.embedder, []
  for name, result in context.results.items():
    errors = result.detail.get("standard_error", {})
    counts = [
      metric
      for metric in ("examples", "captions", "classes", "train_examples")
      if metric in result.metrics
    ]
    for metric in result.metrics:
      if metric in errors:
        rows.append(
          (
            name,
            metric,
            number(result.metrics[metric]),
            number(errors[metric]),
            f"{result.metrics.get('examples', float('nan')):,.0f}",
          )
        )
    rows += [
      (name, metric, number(result.metrics[metric]), "", "")
      for metric in result.metrics
      if not errors and metric not in counts
    ]
  fingerprint = model_fingerprint(cache.model)
  print("\n" + table(rows, header=("", "", "%", "±", "examples")))
  print(f"\nmodel {where}, fingerprint {fingerprint}\n{cache.speed()}")
  if out:
    record = {
      "model": {"from": str(where), "fingerprint": fingerprint},
      "clip_jax": clip_jax.__version__,
      "jax": jax.__version__,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "images_embedded": cache.embedded,
      "seconds": cache.seconds,
      "images_per_second": cache.embedded / max(cache.seconds, 1e-9),
      "metrics": context.metrics,
      "results": {
        name: {"metrics": result.metrics, **result.detail, "model_fingerprint": fingerprint}
        for name, result in context.results.items()
      },
    }
    write_atomically(out, json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")
    print(f"details in {out}")


def _plain(value):
  """Makes a value strict JSON: non-finite numbers become null, and tuples become lists."""
  import math

  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
  run_command(main)
