"""Layout, lint and types: what pyproject.toml says of them holds in every file."""

from pathlib import Path
import subprocess
import sys
import tokenize

ROOT = Path(__file__).parent.parent


def run(*command):
  ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stdout + ran.stderr


def test_layout_imports_and_lint_are_as_the_rules_say():
  run("ruff", "check", "--no-cache", ".")


def test_the_types_that_are_written_are_true(tmp_path):
  run("mypy", f"--cache-dir={tmp_path}")


def test_a_block_is_indented_by_two_more_spaces():
  """ruff's own rule of this knows only four."""
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
