"""Libraries that only some users need, each in an extra of the package."""

import importlib
from types import ModuleType

from clip_jax.errors import UserError


def optional(module: str, extra: str) -> ModuleType:
  """Imports a module that `pip install 'scaling-clip-jax[extra]'` installs.

  Raises:
    UserError: it is not installed; the message has the command that installs it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(
      f"This needs {module.partition('.')[0]}, which is not installed ({error}). Install it with "
      f"pip install 'scaling-clip-jax[{extra}]', in a clone with pip install -e '.[{extra}]'."
    ) from error
