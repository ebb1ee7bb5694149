"""Structure of the package: layers of imports, cheap imports, a docstring in every module."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clip_jax"
# A module imports only from lower layers; all files of a folder belong to one layer.
LAYERS = [
    ("errors",),
    ("config", "interfaces", "distributed", "target"),
    ("losses", "sharding", "report", "flops", "cli", "flags",
     "schedules", "profiling", "bringup", "interrupts", "stop"),
    ("remat", "shares", "convolution"),
    ("attention",),
    ("layers",),
    ("data", "augment", "towers", "optim"),
    ("model", "sheet", "page"),
    ("embedder", "objectives"),
    ("step", "compute"),
    ("checkpoint", "evaluators", "index", "experiment", "positions", "scoring"),
    ("parts", "pretrained"),
    ("loading", "feed", "startup"),
    ("loop", "benches", "planning"),
    ("study",),
    ("train", "evaluate", "prepare", "bench", "score", "export", "plan",
     "search"),
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(path):
  """Returns the first component of a module's name below the package."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_lower_layers(path):
  if path == PACKAGE / "__init__.py":
    return
  layer = {name: i for i, names in enumerate(LAYERS) for name in names}
  assert part(path) in layer, f"{part(path)} is missing from LAYERS"
  for name in imported(ast.parse(path.read_text())):
    root, _, rest = name.partition(".")
    assert root not in ("tensorflow", "torch", "configs"), name
    if root == "tensorflow_datasets":
      assert path == PACKAGE / "data/sources/tfds.py"
    if root != "clip_jax" or not rest:
      continue
    other = rest.split(".")[0]
    same = other == part(path)
    assert same or layer[other] < layer[part(path)], f"{path.name} imports {name}"


def test_importing_initialises_no_backend_and_no_tensorflow():
  names = [".".join(("clip_jax", *p.relative_to(PACKAGE).with_suffix("").parts))
           for p in MODULES if p.name != "__init__.py"]
  code = "\n".join(f"import {name}" for name in names) + """
import sys
from jax._src import xla_bridge
assert not xla_bridge._backends, "importing initialised a JAX backend"
assert not {"tensorflow", "torch"} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_module_has_a_docstring():
  for path in MODULES:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text)), path


def test_there_is_no_catch_all_module():
  assert not [p for p in MODULES if p.stem in ("utils", "util", "helpers", "common", "misc")]
