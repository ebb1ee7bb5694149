"""Evaluates a model: python -m clip_jax.evaluate --from=MODEL --suite=FILE."""

from typing import Any

from clip_jax import cli

HELP = """Says how good a model is, with what is needed to trust the numbers.

  python -m clip_jax.evaluate --from=MODEL --suite=configs/evaluations/openclipart.py [--out=F.json]
  python -m clip_jax.evaluate --from=MODEL --classification=DIR [--templates=openai_80]
  python -m clip_jax.evaluate --from=MODEL --retrieval=F.jsonl [--out=F.json]

  --from=MODEL               the workdir of a training run, an exported model, or another
                             library's checkpoint
  --suite=FILE[:ARGUMENT]    a Python file with get_config(), a ConfigDict of calls of evaluators,
                             and a string for it; images are embedded once for all of them
  --suite.NAME.x=VALUE       replaces a value of the suite
  --only=NAME,...            these evaluators of the suite alone
  --classification=DIR       your own images, one folder a class; classnames.json in it may name the
                             classes, {"folder": "name" or ["name", ...]}
  --templates=NAME           for --classification: none, openai_7, openai_80, a data set that OpenAI
                             has templates for (food101, ...), or a file with one a line and {}
                             where the name goes
  --retrieval=F.jsonl        your own captions, {"image": path beside the file, "caption": "..." or
                             ["...", ...]} a line
  --resize=MODE              for these two: squash, crop (the shorter side, then the centre) or
                             central_crop (0.875 of that), instead of the model's own way
  --out=F.json               everything: settings, counts, standard errors, the model's fingerprint
  --trust=MODULE,...         modules beyond clip_jax that the model's config may call
  --coordinator=HOST:PORT --processes=N --process=I
                             one of N processes, as for clip_jax.train

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from clip_jax.errors import UserError
  from clip_jax.flags import parse
  has_suite = any(a.startswith(("--suite=", "--suite.")) for a in arguments)
  flags = parse(arguments, HELP, config="suite" if has_suite else False,
                strings=("from", "only", "classification", "templates", "retrieval", "resize",
                         "out", "trust", "coordinator", "processes", "process"))
  where = getattr(flags, "from")
  if not where:
    raise UserError("Which model? Set --from=MODEL, the workdir of a training run.")
  suite = evaluators(flags, has_suite)
  if not suite:
    raise UserError("Evaluate on what? Set --suite=FILE, --classification=DIR or "
                    "--retrieval=F.jsonl, as in --suite=configs/evaluations/openclipart.py.")
  if flags.out:
    _writable(flags.out)
  from clip_jax import distributed
  distributed.start(flags.coordinator, flags.processes, flags.process)
  import jax

  from clip_jax.evaluators.answers import ask
  from clip_jax.evaluators.shared import Shared
  from clip_jax.loading import load
  say = print if jax.process_index() == 0 else lambda line: None
  embedder = load(where, trust=tuple(filter(None, (flags.trust or "").split(","))))
  shared = Shared(embedder, say)
  answers = ask(suite, shared, lambda name: say(f"{name}:"))
  if jax.process_index() == 0:
    report(answers, shared, where, flags.out)
  return 0


def evaluators(flags: Any, has_suite: bool) -> dict[str, Any]:
  """The evaluators that the flags ask for, by name."""
  from clip_jax.errors import UserError
  from clip_jax.evaluators.retrieval import Retrieval
  from clip_jax.evaluators.zero_shot import ZeroShot
  made, only = {}, list(filter(None, (flags.only or "").split(",")))
  unknown = [name for name in only if not has_suite or name not in flags.suite]
  if unknown:
    has = ", ".join(flags.suite) if has_suite else "nothing, for there is no --suite"
    raise UserError(f"--only={flags.only}: there is no {unknown[0]!r} in the suite; it has {has}.")
  if has_suite:
    from clip_jax.config import build
    for name, call in flags.suite.items():
      if only and name not in only:
        continue
      if "fn" not in call:
        raise UserError(f"The suite's {name} is not a call; expected call(ZeroShot, ...), or "
                        "another evaluator.")
      made[name] = build(call)
  for flag in ("templates", "resize"):
    asking = [n for n in ("classification", "retrieval") if getattr(flags, n)]
    if getattr(flags, flag) and (not asking or (flag == "templates" and not flags.classification)):
      raise UserError(f"--{flag} is for --classification"
                      f"{' and --retrieval' if flag == 'resize' else ''}; in a suite it is set as "
                      f"--suite.NAME.{flag}=VALUE.")
  if flags.classification:
    source, classes = classification(flags.classification)
    made["classification"] = ZeroShot(source, classes, templates=flags.templates or "none",
                                      resize=flags.resize)
  if flags.retrieval:
    from pathlib import Path

    from clip_jax.data.sources.folder import Folder
    file = Path(flags.retrieval)
    made["retrieval"] = Retrieval(Folder(str(file.parent), captions=file.name),
                                  resize=flags.resize)
  return made


def classification(folder: str) -> tuple[Any, dict[str, Any]]:
  """The source of a folder of classes, and folder -> names."""
  import json
  from pathlib import Path

  from clip_jax.data.sources.folder import IMAGES, Folder
  from clip_jax.errors import UserError
  source = Folder(folder, captions=None)
  empty = [name for name in source.classes if not any(
      file.suffix.lower() in IMAGES for file in (Path(folder) / name).iterdir())]
  if empty:
    raise UserError(
        f"{len(empty)} of the {len(source.classes)} classes in {folder} have no images: "
        f"{_some(empty)}. Add some, or remove their folders.")
  file = Path(folder) / "classnames.json"
  if not file.is_file():
    return source, {name: name.replace("_", " ") for name in source.classes}
  try:
    names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(names, dict):
      raise ValueError("it is not an object")
  except ValueError as error:
    raise UserError(f"{file} cannot be read: {error}. Expected {{\"folder\": \"name\", ...}}, "
                    "where a name may be a list of names.") from error
  for one, other, said in ((names, source.classes, "which are no folders of images"),
                           (source.classes, names, "so these folders have no names")):
    extra = [name for name in one if name not in other]
    if extra:
      raise UserError(f"{file} and the folders beside it do not agree: {len(extra)} are only in "
                      f"one of them, {said}: {_some(extra)}.")
  return source, {name: names[name] for name in source.classes}


def _some(names: list[str]) -> str:
  """The first five."""
  return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def report(answers: dict[str, Any], shared: Any, where: str, out: str | None) -> None:
  """Prints a table, and writes everything to `out`."""
  import json

  import jax

  import clip_jax
  from clip_jax.evaluators.answers import metrics
  from clip_jax.report import number, table
  from clip_jax.scoring import model_fingerprint
  rows = []
  for name, answer in answers.items():
    errors = answer.detail.get("standard_error", {})
    counts = [metric for metric in ("examples", "captions", "classes", "train_examples")
              if metric in answer.metrics]
    for metric in answer.metrics:
      if metric in errors:
        rows.append((name, metric, number(answer.metrics[metric]), number(errors[metric]),
                     f"{answer.metrics.get('examples', float('nan')):,.0f}"))
    rows += [(name, metric, number(answer.metrics[metric]), "", "") for metric in answer.metrics
             if not errors and metric not in counts]
  fingerprint = model_fingerprint(shared.model)
  print("\n" + table(rows, header=("", "", "%", "±", "examples")))
  print(f"\nmodel {where}, fingerprint {fingerprint}\n{shared.speed()}")
  if out:
    told = {
        "model": {"from": str(where), "fingerprint": fingerprint},
        "clip_jax": clip_jax.__version__, "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "images_embedded": shared.embedded, "seconds": shared.seconds,
        "images_per_second": shared.embedded / max(shared.seconds, 1e-9),
        "metrics": metrics(answers),
        "results": {name: {"metrics": answer.metrics, **answer.detail,
                           "model_fingerprint": fingerprint} for name, answer in answers.items()}}
    with open(out, "w", encoding="utf-8") as f:
      json.dump(_plain(told), f, indent=2, allow_nan=False)
      f.write("\n")
    print(f"everything in {out}")


def _plain(value):
  """Numbers that JSON does not have as null, tuples as lists."""
  import math
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _writable(out: str) -> None:
  """Raises unless `out` can be written; an evaluation may take hours."""
  from clip_jax.errors import UserError
  try:
    with open(out, "a", encoding="utf-8"):
      pass
  except OSError as error:
    raise UserError(
        f"--out={out} cannot be written: {error.strerror}. Name another file.") from error


if __name__ == "__main__":
  cli.command(main)
