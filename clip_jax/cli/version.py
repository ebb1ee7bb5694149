"""Which version of the code is running."""

from pathlib import Path
import subprocess


def commit() -> str:
  """Short hash of the checked-out commit; empty if the package is not in a git checkout."""
  try:
    return subprocess.run(
      ["git", "rev-parse", "--short", "HEAD"],
      text=True,
      timeout=10,
      cwd=Path(__file__).parent,
      capture_output=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ""
