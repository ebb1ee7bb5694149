"""Messages name ways out that exist: every flag in them is one of the command that prints them."""

import ast
import functools
import importlib
import re
from unittest import mock

import pytest

from clip_jax import config as config_lib, objectives
from clip_jax.__main__ import COMMANDS
from clip_jax.cli import flags as flags_lib
from clip_jax.cli.config_files import load_function
from markdown_pages import ROOT

PACKAGE = ROOT / "clip_jax"
STUDY = ("run", "table", "figures", "fit", "laws", "calibrate", "predict", "advise", "verdicts")
BENCH = ("step", "loss", "data", "checkpoint")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*(?:\.\w+(?:\[\d+\])?)*)")
OF_OTHER = re.compile(r"(?:clip-jax |clip_jax\.|`|run |use )(\w+)(?: \w+)? [^.;]*?$")
# Strings that are no messages: arguments of other programs and of this package's own processes.
ARGUMENTS = {
  "cli/flags.py": {"name"},
  "cli/version.py": {"short"},
  "data/sources/tfds.py": {
    *("data_dir", "dataset_version_dir", "file_format", "out_dir", "out_file_format")
  },
  "init/__main__.py": {"format"},
  "init/survey.py": {"caption_files"},
  "study/runner.py": {"fingerprint", "format", "name", "query-gpu"},
  "__main__.py": {"help", "version"},
}
# Notes in a config that `study advise` and `init` write: they are for those who train with it.
NOTES = ("study/advice_report.py", "init/__main__.py")
# Programs that a message may tell the user to run, by the start of the command.
FOREIGN = re.compile(r"(pip|git|tar|gcloud|kubectl|sbatch|hf|npm|mkdocs|tensorboard)\b[^.;]*$")


def sources():
  return [path for path in sorted(PACKAGE.rglob("*.py")) if "assets" not in path.parts]


def name_of(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


@functools.cache
def imports():
  """Module -> the modules of this package that it imports, anywhere in it."""
  known = {name_of(path) for path in sources()}
  found = {}
  for path in sources():
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found[name_of(path)] = names & known
  return found


def reached_from(start):
  seen, todo = set(), [start]
  while todo:
    module = todo.pop()
    if module not in seen:
      seen.add(module)
      todo += imports()[module]
  return seen


def module_of(command):
  folder = (PACKAGE / command).is_dir()
  return f"clip_jax.{command}.__main__" if folder else f"clip_jax.{command}"


class Parsed(Exception):
  """Raised in place of parsing, with the names of the flags."""


def parse(arguments, text, *, config=False, strings=(), switches=(), **options):
  named = {"config" if config is True else config} if config else set()
  raise Parsed({"help", *named, *strings, *switches})


@functools.cache
def flags_of(command):
  """The flags that the parser of a command knows, with those of its subcommands."""
  module = importlib.import_module(module_of(command))
  found = set()
  # Some commands have a flag for a config only if it is given.
  for argument in {"study": STUDY, "bench": BENCH}.get(command, ("", "--suite=x", "--config=x")):
    with mock.patch.object(flags_lib, "parse", parse), pytest.raises(Parsed) as known:
      with mock.patch.object(module, "parse", parse, create=True):
        module.main([argument])
    found |= known.value.args[0]
  return found


@functools.cache
def users():
  """Module -> the commands that can reach it; a command's own module belongs to it alone."""
  found = {}
  for command in COMMANDS:
    for module in reached_from(module_of(command)):
      found.setdefault(module, set()).add(command)
  return found | {module_of(command): {command} for command in COMMANDS}


@functools.cache
def fields():
  """Names of config fields, as in train.steps, of all configs in the repository."""
  found = set()
  for path in [*(ROOT / "configs").glob("*.py")]:
    if path.stem in ("__init__", "stored_features"):
      continue
    model = f":{ROOT / 'tests/golden/huggingface_clip'}" if path.stem == "finetune" else ""
    config = load_function(f"{path}{model}", "get_config")()
    found |= {re.sub(r"\[?\d+\]?\.", "", name) for name in config_lib.entries(config)}
  for name in objectives.PARTS:
    parameters = config_lib.parameters_of(getattr(objectives, name))
    found |= {f"objective.{parameter}" for parameter in parameters}
  return found | {section for name in found for section in prefixes(name)}


def prefixes(name):
  parts = name.split(".")
  return [".".join(parts[:n]) for n in range(1, len(parts))]


def messages(path):
  """(line, text) of the strings of a module, without docstrings and the texts of --help."""
  tree = ast.parse(path.read_text())
  skipped = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      skipped.add(node.value)
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HELP":
      skipped |= {*ast.walk(node.value)}
  inner = {
    part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
  }
  for node in ast.walk(tree):
    if node in skipped or node in inner:
      continue
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr):
      parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
      yield node.lineno, "".join(parts)  # A value that is filled in ends a flag.


def named():
  """(place, module, flag, text before it) of every flag in a message."""
  for path in sources():
    for line, text in messages(path):
      for found in FLAG.finditer(text):
        yield f"{path.relative_to(ROOT)}:{line}", name_of(path), found[1], text[: found.start()]


def problem(place, module, flag, before):
  """Why nobody who reads the message can use the flag; "" if they can."""
  file = place.partition(":")[0].removeprefix("clip_jax/")
  if FOREIGN.search(before) or flag in ARGUMENTS.get(file, ()):
    return ""
  other = OF_OTHER.search(before)
  commands = {other[1]} if other and other[1] in COMMANDS else users().get(module, set())
  flag, dot, field = flag.partition(".")
  if dot and file in NOTES:
    commands = {"train"}
  if not any(flag in flags_of(command) for command in commands):
    return f"--{flag} is no flag of {', '.join(sorted(commands)) or 'any command'}"
  if dot and flag == "config" and not field_exists(field):
    return f"no config has {field}"
  return ""


def field_exists(field):
  """Whether a config of the repository has a field; NAME stands for any one name."""
  pattern = re.sub(r"\bNAME\b", r"\\w+", field.replace("[0]", ""))
  return any(re.fullmatch(pattern, known) for known in fields())


def test_every_flag_in_a_message_is_one_of_its_command():
  found = [
    (place, flag, problem(place, module, flag, before)) for place, module, flag, before in named()
  ]
  assert len(found) > 150
  assert not [entry for entry in found if entry[2]]


@pytest.mark.parametrize(
  "command, text, wrong",
  [
    ("search", "Set --images to a folder.", False),
    ("search", "Set --suite to a file.", True),
    ("search", "Train it longer: --config.train.steps=9", True),
    ("train", "Train it longer: --config.train.steps=9", False),
    ("train", "Train it longer: --config.train.stepz=9", True),
    ("search", "Measure it with clip-jax evaluate --suite=F", False),
    ("search", "Install it with pip install --upgrade jax", False),
  ],
)
def test_a_wrong_flag_in_a_message_would_be_found(command, text, wrong):
  found = FLAG.search(text)
  place, module = f"clip_jax/{command}.py:1", f"clip_jax.{command}"
  assert bool(problem(place, module, found[1], text[: found.start()])) == wrong
