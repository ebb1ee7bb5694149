"""PyPI's clip-jax is imported as clip_jax too; a mixture of the two packages is an error."""

from pathlib import Path
import shutil
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).parents[1] / "clip_jax"
FOREIGN = '"""A package of the same name."""\n\n__version__ = "9.9"\n\n\nclass CLIPModel:\n  pass\n'
COMMANDS = (
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
  "study",
)
IMPORT_ALL = """
import importlib
import sys
for name in sys.argv[1:]:
  try:
    importlib.import_module(name)
  except ImportError as error:
    assert "scaling-clip-jax" in str(error), (name, error)
  else:
    print(name)
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
  """A folder in which the other package was installed over this one."""
  folder = tmp_path_factory.mktemp("site")
  ignored = shutil.ignore_patterns("assets", "reference", "__pycache__")
  shutil.copytree(PACKAGE, folder / "clip_jax", ignore=ignored)
  (folder / "clip_jax/__init__.py").write_text(FOREIGN)
  return folder


def run(folder, *arguments):
  return subprocess.run(
    [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize(
  "arguments",
  [
    ("-c", "import clip_jax.config"),
    ("-c", "from clip_jax.towers import Vit"),
    ("-c", "from clip_jax.__main__ import entry_point; entry_point()"),
    ("-m", "clip_jax", "train"),
    *(("-m", f"clip_jax.{name}", "--help") for name in COMMANDS),
  ],
)
def test_the_message_names_both_packages_and_the_way_out(mixture, arguments):
  ran = run(mixture, *arguments)
  assert ran.returncode == 1
  assert not ran.stdout
  _, _, message = ran.stderr.rpartition("ImportError: ")
  assert str(mixture / "clip_jax/__init__.py") in message
  assert "another package on PyPI" in message
  assert "pip uninstall clip-jax\n" in message
  assert message.endswith("pip install --force-reinstall --no-deps scaling-clip-jax\n")


def test_hardly_a_module_can_be_imported(mixture):
  names = [
    ".".join(("clip_jax", *p.relative_to(PACKAGE).with_suffix("").parts))
    for p in sorted(PACKAGE.rglob("*.py"))
    if p.name not in ("__init__.py", "__main__.py")
  ]
  ran = run(mixture, "-c", IMPORT_ALL, *names)
  assert ran.returncode == 0, ran.stderr
  imported = ran.stdout.split()
  assert len(imported) < len(names) / 4
  assert not {f"clip_jax.{name}" for name in (*COMMANDS, "config", "losses")} & {*imported}


def test_this_package_passes():
  assert run(PACKAGE.parent, "-c", "import clip_jax.config, clip_jax.losses").returncode == 0
