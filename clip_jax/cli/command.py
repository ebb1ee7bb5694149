"""Functions shared by all commands: exit codes, error messages, quiet logs, cache folders."""

from collections.abc import Callable
import logging
import os
import sys
import traceback
import warnings

from clip_jax.cli.cache import compiled_programs
from clip_jax.cli.formatting import printable
from clip_jax.errors import UserError


def run_command(main: Callable[[list[str]], int | None]) -> None:
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


def _say(message: str, code: int) -> int:
  print(printable(message, keep="\n\t"), file=sys.stderr)
  return code
