"""The one exception that means: what was asked for cannot be done, and here is the way out."""


class UserError(ValueError):
  """A mistake in a config, a flag or the data, not in this code.

  Its message holds the value, what was expected, and what to do. Commands print it without a
  traceback and exit with code 2.
  """
