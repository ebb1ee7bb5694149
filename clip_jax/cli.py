"""What all commands share: exit codes, messages, quiet logs."""

from collections.abc import Callable
import logging
import os
import sys
import traceback
import warnings

from clip_jax.errors import UserError


def command(main: Callable[[list[str]], int | None]):
  """Runs `main(arguments)` and exits: 0 done, 2 the user's mistake, 130 Ctrl-C, 1 anything else.

  A mistake is one message without a traceback. `main` may return another exit code.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="multiprocessing")
  try:
    code = main(sys.argv[1:]) or 0
  except UserError as e:
    code = _say(f"error: {e}", 2)
  except KeyboardInterrupt:
    code = _say("\nStopped. What was saved is saved; the same command goes on from there.", 130)
  except Exception:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.exit(code)


def _say(message: str, code: int) -> int:
  print(message, file=sys.stderr)
  return code
