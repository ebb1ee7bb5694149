"""The plan of the package: layers of imports, cheap imports, names of modules."""

import ast
from collections import defaultdict
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clip_jax"
# A room imports from the lines above its own, and on its own line from rooms to the left of it.
LAYERS = (
  ("errors", "files", "cli", "old_names", "interfaces", "config", "losses"),
  ("parallel", "nn"),
  ("towers", "data", "model", "objectives"),
  ("costs", "pretrained", "inference", "evaluators"),
  ("training",),
  ("planning", "benches", "study"),
  (
    "train",
    "evaluate",
    "score",
    "prepare",
    "export",
    "plan",
    "bench",
    "search",
    "init",
    "mix",
    "embed",
    "__main__",
  ),
)
ORDER = {room: (i, j) for i, rooms in enumerate(LAYERS) for j, room in enumerate(rooms)}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path):
  """The top-level package or module that a file belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
  if path == PACKAGE / "__init__.py":
    return
  assert room(path) in ORDER, f"add {room(path)} to LAYERS"
  for name in imported(ast.parse(path.read_text())):
    root, _, rest = name.partition(".")
    assert root not in ("tensorflow", "torch"), name
    if root == "tensorflow_datasets":
      assert path == PACKAGE / "data/sources/tfds.py"
    if root != "clip_jax" or not rest or rest.startswith("__"):
      continue
    other = rest.split(".")[0]
    assert other != "configs", (
      f"{path.name} imports {name}: configs use the package, not vice versa"
    )
    same = other == room(path)
    assert same or ORDER[other] < ORDER[room(path)], f"{path.name} imports {name}"


def test_there_are_at_most_seven_layers_and_sixteen_files_at_the_top():
  assert len(LAYERS) <= 7
  assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_no_two_modules_share_a_name_or_differ_in_an_ending_only():
  """Names such as "score", "scoring" and "scores" are too easily confused."""
  stems = defaultdict(set)
  for path in MODULES:
    if path.stem not in ("__init__", "__main__"):
      stems[re.sub(r"(ings?|e?s|e)$", "", path.stem)].add(str(path.relative_to(PACKAGE)))
  assert not [sorted(paths) for paths in stems.values() if len(paths) > 1]


def test_no_module_shadows_a_library():
  libraries = {*sys.stdlib_module_names, "tokenizers", "safetensors", "jax", "flax", "grain", "PIL"}
  # A folder's own modules are imported by their full names; these are the field's words.
  assert not {p.stem for p in MODULES} & libraries - {"__future__"}


def test_private_parts_of_jax_are_used_in_one_file_only():
  users = [p for p in MODULES if "jax._src" in p.read_text()]
  assert users == [PACKAGE / "parallel/jax_private.py"]


def test_importing_touches_no_device_and_no_tensorflow():
  names = [
    ".".join(("clip_jax", *p.relative_to(PACKAGE).with_suffix("").parts))
    for p in MODULES
    if p.name not in ("__init__.py", "__main__.py")
  ]
  code = (
    "\n".join(f"import {name}" for name in names)
    + """
import sys
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was touched"
assert not {"tensorflow", "torch"} & set(sys.modules)
"""
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_module_has_a_docstring():
  for path in MODULES:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text)), path


def test_there_is_no_catch_all_module():
  assert not [p for p in MODULES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_the_readme_shows_every_folder_of_the_package():
  tree = (ROOT / "README.md").read_text().split("```text\nclip_jax/\n")[1].split("```")[0]
  shown = re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE)
  folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
  assert set(shown) == folders
  order = [name for rooms in LAYERS for name in rooms if name in folders]
  assert [ORDER[name][0] for name in shown] == sorted(ORDER[name][0] for name in order)
