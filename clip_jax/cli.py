"""Functions shared by all commands: exit codes, error messages, quiet logs, cache folders."""

from collections.abc import Callable
import hashlib
import logging
import os
from pathlib import Path
import platform
import sys
import traceback
import warnings

from clip_jax.errors import UserError


def command(main: Callable[[list[str]], int | None]) -> None:
  """Runs `main(arguments)` and exits: 0 done, 2 user error, 130 Ctrl-C, 1 any other error.

  A UserError is printed as a message without a traceback. `main` may return another exit code.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # Set this before importing JAX, which reads it once, to cache compiled programs across runs.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_programs()))
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="multiprocessing")
  try:
    code = main(sys.argv[1:]) or 0
  except UserError as e:
    code = _say(f"error: {e}", 2)
  except KeyboardInterrupt:
    code = _say("\nStopped. Saved output is kept; rerun the same command to continue from it.", 130)
  except Exception:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.exit(code)


def caches() -> Path:
  """Returns the folder for cached files, all of which can be recomputed."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip_jax"


def compiled_programs() -> Path:
  """Returns the folder for compiled programs, which JAX_COMPILATION_CACHE_DIR overrides."""
  # Machines may share a home directory, and a program compiled for one CPU may not run on another.
  try:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    flags = platform.processor()
  return caches() / f"compiled-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _say(message: str, code: int) -> int:
  print(message, file=sys.stderr)
  return code
