"""The exception for mistakes that the user can correct, and the check for a package of our name."""

import sys


class UserError(ValueError):
  """A mistake in a config, a flag or the data, as opposed to a bug in this package.

  The message names the offending value, what was expected, and how to fix it. Commands print it
  without a traceback and exit with code 2.
  """


def _check_package() -> None:
  """Raises ImportError if the imported `clip_jax` is that of another distribution.

  PyPI's `clip-jax` has a package of the same name. Installed next to this one, it overwrites some
  of the files. Nearly every module imports this one, so nothing runs in such a mixture.
  """
  package = sys.modules[__name__.partition(".")[0]]
  if getattr(package, "__distribution__", None) != "scaling-clip-jax":
    raise ImportError(
      f"The package clip_jax in {getattr(package, '__file__', None)} is not the one of "
      "scaling-clip-jax, but probably the one of clip-jax, another package on PyPI that is "
      "imported by the same name. Uninstall the other one and reinstall this one:\n"
      "  pip uninstall clip-jax\n"
      "  pip install --force-reinstall --no-deps scaling-clip-jax"
    )


_check_package()
