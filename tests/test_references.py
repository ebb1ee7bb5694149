"""Names in comments, docstrings and pages exist in the code."""

import ast
from collections import defaultdict
import functools
import io
from pathlib import Path
import re
import subprocess
import tokenize

import pytest

from markdown_pages import ROOT, spans

PACKAGE = ROOT / "clip_jax"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# docs/peers.md is about other codebases.
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs/peers.md"})
# Sections of a config, whose fields are named as in `train.init_from`.
SECTIONS = {"data", "model", "objective", "optimizer", "train", "mesh"}
# Names of other libraries and of tools: as the first of several, and alone.
MODULES = {"absl", "contextlib", "jax", "jnp", "nnx", "np", "optax", "os", "tarfile", "tfds"}
FOREIGN = {
  "XLA_CLIENT_MEM_FRACTION",
  "compiled.as_text",  # An object that JAX returns.
  "device_ids",  # Of HLO.
  "from_pretrained",  # Of Hugging Face.
  "ftfy",
  "jit",
  "mypy",
  "noqa",
  "pytest",
  "retrieval.png",  # An output of the quickstart.
  "seek",
  "srun",
  "two_towers.load",  # Of big_vision.
  "with",
}
PLACEHOLDER = re.compile(r"[A-Z]+\.\w+|clip_jax\.NAME")  # NAME.npz, OUT.parts.
NAME = re.compile(r"_?[A-Za-z]\w*(\.\w+)*")
ITEM = re.compile(r"^  \*{0,2}(\w[\w, *]*):", re.MULTILINE)


@functools.cache
def parsed(path):
  return ast.parse(path.read_text())


def documented(tree):
  """Yields the modules, classes and functions with a docstring."""
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
      yield node


@functools.cache
def identifiers(path):
  """Names that the code of a file defines or uses, and strings that are a name."""
  names, tree = set(), parsed(path)
  docstrings = {id(node.body[0].value) for node in documented(tree)}
  for node in ast.walk(tree):
    for field in ("id", "attr", "arg", "name", "asname"):
      value = getattr(node, field, None)
      names.update(value.split(".") if isinstance(value, str) else ())
    if isinstance(node, ast.ImportFrom):
      names.update((node.module or "").split("."))
    if (
      isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ):
      names.update(filter(NAME.fullmatch, re.split(r"[/.]", node.value)))
  return names


@functools.cache
def package():
  """All identifiers of the package and of configs; and those of each module, by its last name."""
  by_module = defaultdict(set)
  for path in SOURCES:
    by_module[path.parent.name if path.name == "__init__.py" else path.stem] |= identifiers(path)
  return set().union(*by_module.values()) | set(by_module), by_module


@functools.cache
def definitions():
  """Functions, classes, arguments, attributes, constants and modules of the package."""
  found = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
  for path in SOURCES:
    for node in ast.walk(parsed(path)):
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        found.add(node.name)
      elif isinstance(node, ast.arg):
        found.add(node.arg)
      elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        found.add(node.attr)
    for scope in [n for n in ast.walk(parsed(path)) if isinstance(n, (ast.Module, ast.ClassDef))]:
      for node in scope.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found.update(n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name))
  return found


@functools.cache
def file_names():
  listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
  return {Path(name).name for name in listed.split()}


def references(texts):
  """Yields the names in backticks, without the arguments of calls and values of settings."""
  for text in texts:
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
      name = re.sub(r"\(.*\)$|=.*$", "", span)
      if NAME.fullmatch(name):
        yield name


def prose(path):
  """Yields the comments and docstrings of a file."""
  for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
    if token.type == tokenize.COMMENT:
      yield token.string
  yield from (ast.get_docstring(node) for node in documented(parsed(path)))


def exists(name, local):
  """Whether a name is one of `local`, a definition of the package, or one of the exceptions."""
  everything, by_module = package()
  first, *rest = name.split(".")
  if name in FOREIGN or first in MODULES or PLACEHOLDER.fullmatch(name) or name in file_names():
    return True
  if first in SECTIONS and rest:
    return set(rest) <= everything
  if not all(part in local or part in definitions() for part in (first, *rest)):
    return False
  # `layers.Linear` is in a module of that name.
  return len(rest) != 1 or first not in by_module or rest[0] in by_module[first] | set(by_module)


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_comments_and_docstrings_exist(path):
  # Configs mention metrics and flags of the package.
  local = package()[0] if ROOT / "configs" in path.parents else identifiers(path)
  assert not {name for name in references(prose(path)) if not exists(name, local)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_on_pages_exist(page):
  local = package()[0].union(*map(identifiers, [*TESTS, ROOT / "setup.py"]))
  texts = [f"`{span}`" for span in spans(page.read_text())]
  assert not {name for name in references(texts) if not exists(name, local)}


def section(docstring, head):
  """Returns the names that a section of a docstring describes."""
  found = re.search(rf"^{head}:\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE)
  lists = ITEM.findall(found[1]) if found else []
  return {name.strip().lstrip("*") for names in lists for name in names.split(",")}


def arguments(node):
  """Returns the argument names of a function, or of a class's `__init__` or its fields."""
  if isinstance(node, ast.ClassDef):
    inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
    return arguments(inits[0]) if inits else attributes(node)
  return {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}


def attributes(node):
  """Returns the fields, methods and attributes of a class, and those that it sets on itself."""
  found = set()
  for one in ast.walk(node):
    if isinstance(one, ast.FunctionDef):
      found.add(one.name)
    elif isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store):
      found.add(one.attr)
    elif isinstance(one, ast.Constant) and isinstance(one.value, str):
      found.add(one.value)  # object.__setattr__(self, "name", ...).
  return found | {n.id for b in node.body for n in ast.walk(b) if isinstance(n, ast.Name)}


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_describe_arguments_and_attributes_that_exist(path):
  for node in documented(parsed(path)):
    docstring = ast.get_docstring(node)
    if not isinstance(node, ast.Module):
      assert section(docstring, "Args") <= arguments(node), node.name
    if isinstance(node, ast.ClassDef):
      assert section(docstring, "Attributes") <= attributes(node), node.name


def test_a_name_that_does_not_exist_is_found(tmp_path):
  file = tmp_path / "file.py"
  docstring = "Calls `never_defined(x)` of `layers.nothing`.\n\n  Args:\n    y: not x.\n  "
  file.write_text(f'def f(x):\n  """{docstring}"""\n')
  names = list(references(prose(file)))
  assert names == ["never_defined", "layers.nothing"]
  assert not any(exists(name, identifiers(file)) for name in names)
  (node,) = documented(parsed(file))
  assert section(ast.get_docstring(node), "Args") == {"y"} and arguments(node) == {"x"}
