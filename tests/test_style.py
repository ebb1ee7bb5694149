"""Layout, lint and types of every file, as configured in pyproject.toml."""

from pathlib import Path
import subprocess
import sys
import tokenize

ROOT = Path(__file__).parent.parent


def run(*command):
  ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stdout + ran.stderr


def test_ruff_passes():
  run("ruff", "check", "--no-cache", ".")


def test_mypy_passes(tmp_path):
  run("mypy", f"--cache-dir={tmp_path}")


def test_indentation_is_two_spaces():
  """ruff's own rule supports only four."""
  files = [p for p in ROOT.rglob("*.py") if not {".venv", "build", "dist"} & set(p.parts)]
  assert len(files) > 200
  for path in files:
    depth = [0]
    with path.open("rb") as file:
      for token in tokenize.tokenize(file.readline):
        if token.type == tokenize.INDENT:
          assert len(token.string) == depth[-1] + 2, f"{path}:{token.start[0]}"
          depth.append(len(token.string))
        elif token.type == tokenize.DEDENT:
          depth.pop()
