"""Functions shared by all commands: exit codes, error messages, quiet logs, cache folders."""

from collections.abc import Callable
import gc
import logging
import os
import signal
import sys
import threading
import traceback
from types import FrameType
import warnings

from clip_jax.cli.cache import compiled_programs
from clip_jax.cli.formatting import printable
from clip_jax.errors import UserError
from clip_jax.files import is_full_disk


def run_command(main: Callable[[list[str]], int | None]) -> None:
  """Runs `main(arguments)` and exits: 0 done, 2 user error, 130 Ctrl-C, 1 any other error.

  A UserError is printed as a message without a traceback, and may have an exit code of its own, as
  `exit_code`. So is the error of a full disk, which exits with 2. `main` may return another exit
  code.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # Set this before importing JAX, which reads it once, to cache compiled programs across runs.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_programs()))
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="multiprocessing")
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _on_ctrl_c)
  try:
    code = main(sys.argv[1:]) or 0
  except UserError as e:
    code = _say(f"error: {e}", getattr(e, "exit_code", 2))
  except KeyboardInterrupt:
    code = _say("\nStopped. Saved output is kept; rerun the same command to continue from it.", 130)
  except Exception as e:
    if is_full_disk(e):
      advice = "Free some space or raise the quota, then rerun the command; what it saved is kept."
      code = _say(f"error: The disk is full: {e}\n{advice}", 2)
    else:
      traceback.print_exc()
      code = 1
  sys.stdout.flush()
  sys.exit(code)


def _say(message: str, code: int) -> int:
  print(printable(message, keep="\n\t"), file=sys.stderr)
  return code


def _on_ctrl_c(number: int, frame: FrameType | None) -> None:
  """Raises KeyboardInterrupt, a moment later if Python would drop it here.

  Python prints and drops exceptions in finalizers and in callbacks of the garbage collector, of
  which JAX has one, and of weak references, which imports use.
  """
  callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
  while frame is not None:
    code = frame.f_code
    if (
      code in callbacks
      or code.co_name == "__del__"
      or (code.co_name == "cb" and "importlib" in code.co_filename)
    ):
      later = threading.Timer(0.01, os.kill, (os.getpid(), number))
      later.daemon = True
      later.start()
      return
    frame = frame.f_back
  raise KeyboardInterrupt
