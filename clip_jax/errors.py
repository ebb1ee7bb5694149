"""The exception for mistakes that the user can correct."""


class UserError(ValueError):
  """A mistake in a config, a flag or the data, as opposed to a bug in this package.

  The message names the offending value, what was expected, and how to fix it. Commands print it
  without a traceback and exit with code 2.
  """
