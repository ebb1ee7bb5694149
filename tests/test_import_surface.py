"""What `import clip_jax` gives: names, completion, and types for users' own code."""

import ast
import importlib
import importlib.util
from pathlib import Path
import subprocess
import sys
import sysconfig
import venv

import pytest

import clip_jax

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", clip_jax.__all__)
def test_every_public_name_is_imported_on_first_use(name):
  found = getattr(clip_jax, name)
  assert name in dir(clip_jax)
  if name not in ("build", "call", "load", "run"):
    assert found is importlib.import_module(f"clip_jax.{name}")
    assert {*getattr(found, "__all__", ())} <= {*dir(found)}


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'tower'"):
    _ = clip_jax.tower


def test_type_checkers_see_the_names_that_exist_at_run_time():
  tree = ast.parse(Path(clip_jax.__file__).read_text())
  block = next(node for node in tree.body if isinstance(node, ast.If))
  assert ast.unparse(block.test) == "TYPE_CHECKING"
  seen = [alias.name for statement in block.body for alias in statement.names]
  assert sorted(seen) == sorted(clip_jax.__all__)


def test_using_the_package_starts_no_backend():
  code = """
import sys
import clip_jax
assert "towers" in dir(clip_jax) and "jax" not in sys.modules, "the import itself imports JAX"
clip_jax.losses.info_nce, clip_jax.data.Subset, clip_jax.evaluators.ZeroShot
clip_jax.towers.Vit, clip_jax.objectives.Clip, clip_jax.load, clip_jax.run
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


USER_CODE = """import clip_jax
reveal_type(clip_jax.losses.info_nce)
reveal_type(clip_jax.data.Subset)
reveal_type(clip_jax.load)
reveal_type(clip_jax.load("run").encode_text(["a dog"]))
vit: type[clip_jax.towers.Vit] = clip_jax.towers.Vit
clip = clip_jax.call(clip_jax.objectives.Clip, temperature=0.1)
evaluator = clip_jax.evaluators.ZeroShot
embedder = clip_jax.load(3)
clip_jax.towers.NoTower
"""


def installed(folder, *, typed):
  """A Python in a new environment that has this package, without pip, and our dependencies."""
  venv.create(folder, with_pip=False, symlinks=True)
  python = folder / "bin/python"
  purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
  package = purelib / "clip_jax"
  package.mkdir()
  for path in (ROOT / "clip_jax").iterdir():
    if typed or path.name != "py.typed":
      (package / path.name).symlink_to(path)
  (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
  return python


def types_of_user_code(tmp_path, *, typed):
  (tmp_path / "user").mkdir()
  (tmp_path / "user/code.py").write_text(USER_CODE)
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "mypy",
      f"--python-executable={installed(tmp_path / 'venv', typed=typed)}",
      f"--cache-dir={tmp_path / 'cache'}",
      "--config-file=",
      "--follow-imports=silent",
      "--no-error-summary",
      "code.py",
    ],
    cwd=tmp_path / "user",
    capture_output=True,
    text=True,
  )
  assert not done.stderr, done.stderr
  return done.stdout.splitlines()


def test_users_code_is_checked_against_our_types(tmp_path):
  pytest.importorskip("mypy")
  told = types_of_user_code(tmp_path, typed=True)
  text = "\n".join(told)
  assert "code.py:2: note: Revealed type is" in told[0] and "jax" in told[0], text
  assert "clip_jax.data.subset.Subset" in told[1], text
  assert "clip_jax.inference.embedder.Embedder" in told[2], text
  assert "numpy.ndarray" in told[3], text
  assert told[4].startswith('code.py:9: error: Argument 1 to "load" has incompatible type "int"')
  assert told[5].startswith("code.py:10: error:") and "NoTower" in told[5], text
  assert len(told) == 6, text


def test_without_the_marker_types_would_not_be_seen(tmp_path):
  pytest.importorskip("mypy")
  told = types_of_user_code(tmp_path, typed=False)
  assert "py.typed" in told[0] and not any("Subset" in line for line in told), told
