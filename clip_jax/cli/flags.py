"""Command-line flags: plain ones, and configs with overrides (--config=FILE --config.a.b=value)."""

import contextlib
import re
import sys
from types import SimpleNamespace
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from clip_jax.cli.call_text import MakeCall, set_call, split_calls
from clip_jax.cli.config_files import resolve
from clip_jax.cli.local_paths import expand_home, local_path
from clip_jax.cli.quantities import quantity
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError
from clip_jax.files import check_writable

# Flags with a path to write to, which may not be a URL.
OUTPUTS = ("workdir", "out", "json", "profile", "contact_sheet", "tokenizer")
# Old flag -> today's; commands that have today's accept the old one.
ALIASES = {"from": "model", "like": "query_image", "sheet": "contact_sheet"}


def parse(
  arguments: list[str],
  text: str,
  *,
  config: bool | str = False,
  make_call: MakeCall | None = None,
  strings: tuple[str, ...] = (),
  switches: tuple[str, ...] = (),
) -> SimpleNamespace:
  """Parses flags; returns their values by name, with the config overridden and locked.

  Args:
    arguments: arguments of the command, without the program's name.
    text: help text, printed for --help.
    config: whether there is a --config flag; or the name of that flag, if different.
    make_call: writes down a call in an override, as in --config.data.source="ArrayRecord('DIR')";
      `clip_jax.config.call_part`. None if overrides may not contain calls.
    strings: names of flags that take a value, None if not given.
    switches: names of flags without a value.

  Raises:
    UserError: a flag or a name in the config does not exist, with the closest match in the message;
      the config file is missing; or an output is a URL.
  """
  if {"--help", "-h", "-help"} & set(arguments):
    print(text.rstrip())
    sys.exit(0)
  arguments = [_renamed(expand_home(argument), strings) for argument in arguments]
  values = absl_flags.FlagValues()
  for name in strings:
    absl_flags.DEFINE_string(name, None, "", flag_values=values)
  for name in switches:
    absl_flags.DEFINE_bool(name, False, "", flag_values=values)
  config = "config" if config is True else config
  if config:
    arguments = _with_config_path(arguments, config)
    arguments, calls = split_calls(arguments, config) if make_call else (arguments, {})
    # The library runs the file in the module of an earlier call, which would keep its get_config().
    sys.modules.pop(f"{config}_config", None)
    config_flags.DEFINE_config_file(config, flag_values=values, sys_argv=["clip_jax", *arguments])
  known = (*strings, *switches, *((config,) if config else ()))
  for argument in arguments:
    _check_name(argument, known)
  try:
    with _none_accepted():
      extra = values(["clip_jax", *arguments])[1:]
  except (absl_flags.Error, AttributeError, KeyError, TypeError) as e:
    raise UserError(_readable(e, arguments)) from e
  if extra:
    raise UserError(f"{extra[0]!r} is not a flag; flags look like --name=value.")
  if config and make_call:
    for field, call in calls.items():
      set_call(values[config].value, field, call, make_call, config)
  for name in set(OUTPUTS).intersection(strings):
    if values[name].value:
      local_path(values[name].value, f"--{name}")
  return SimpleNamespace(**{name: values[name].value for name in known})


class _OrNone(absl_flags.ArgumentParser):
  """Accepts None in addition to another parser's values, such as --config.train.steps=None."""

  def __init__(self, parser: Any):
    super().__init__()
    self.parser = parser

  def parse(self, argument):
    return None if argument in (None, "None") else self.parser.parse(argument)

  def flag_type(self):
    return self.parser.flag_type()


class _Counts(absl_flags.IntegerParser):
  """Accepts counts such as 10k and 1e6 in addition to integers."""

  def convert(self, argument):
    try:
      return super().convert(argument)
    except ValueError:
      with contextlib.suppress(ValueError):
        return quantity(argument)
      raise


_PARSERS = {
  int: _OrNone(_Counts()),
  float: _OrNone(absl_flags.FloatParser()),
  str: _OrNone(absl_flags.ArgumentParser()),
}


@contextlib.contextmanager
def _none_accepted():
  """Registers `_PARSERS` in this context only: a program may have registered parsers of its own."""
  registered = config_flags.config_flags._FIELD_TYPE_TO_PARSER
  before = dict(registered)
  registered.update(_PARSERS)
  try:
    yield
  finally:
    registered.clear()
    registered.update(before)


def _renamed(argument, known):
  """An argument with today's name of its flag."""
  name = re.match(r"--?([^=]+)", argument)
  new = ALIASES.get(name[1]) if name and name[1] not in known else None
  return f"--{new}{argument[name.end() :]}" if new in known else argument


def _with_config_path(arguments, flag):
  """The arguments with the path of the config file in place of an installed config's name."""
  given = [a for a in arguments if a.startswith(f"--{flag}=")]
  if not given:
    example = "quickstart" if flag == "config" else "evaluations/openclipart"
    raise UserError(f"No {flag} is given. Set --{flag}=NAME or FILE.py, as in --{flag}={example}.")
  path, argument = resolve(given[-1].partition("=")[2], flag)
  # First, because the library needs the config before its overrides.
  return [
    f"--{flag}={path}" + (f":{argument}" if argument else ""),
    *(a for a in arguments if a not in given),
  ]


def _check_name(argument, known):
  name = re.match(r"--?([^=.]*)", argument)
  if name and name[1] and name[1].removeprefix("no") not in known and name[1] not in known:
    raise UserError(
      f"There is no flag --{name[1]}; there are "
      f"{', '.join('--' + n for n in known)}.{did_you_mean(name[1], known, '--{}')}"
    )


def _readable(error: Exception, arguments: list[str]) -> str:
  """Returns the message of an error of the flag library, without quotes and repetitions."""
  message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  if "no attribute 'get_config" in message:
    given = next(a for a in arguments if re.match(r"--\w+=.*\.py", a))
    return (
      f"The file in {given} does not define get_config(). If it is a grid of the study, use "
      "python -m clip_jax.study run --grid=FILE --out=DIR."
    )
  # The library wraps a UserError raised by a config file in the text of its traceback.
  message = message.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
  message = re.sub(r"(\S{40})\S{200,}", r"\1...", message.strip().strip("'\""))
  # It quotes the message about an unknown config field as a Python string.
  lacks = re.search(r"(\w+)\\?'(?:\\n|\n)(Did you mean \"\w+\") instead", message)
  if not lacks and isinstance(error, (AttributeError, KeyError)) and message.isidentifier():
    return f"The config has no {message!r}. --print shows the names that it has."
  return f"The config has no {lacks[1]!r}. {lacks[2]}?" if lacks else message


def check_output(path: str | None, flag: str) -> None:
  """Checks that an output file can be written, before work that may take hours.

  Raises:
    UserError: it cannot.
  """
  if path:
    try:
      check_writable(path)
    except OSError as error:
      raise UserError(
        f"{flag}={path} cannot be written: {error.strerror}. Choose another file."
      ) from error


def shard(text: str | None) -> tuple[int, int]:
  """Parses --shard=i/n, which makes this machine i of n; returns (i, n), or (0, 1) for None.

  Raises:
    UserError: `text` is not of that form, or i is not below n.
  """
  numbers = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
  if not numbers or int(numbers[1]) >= int(numbers[2]):
    raise UserError(f"--shard={text} is not I/N with I from 0 to N - 1, as in --shard=0/8.")
  return int(numbers[1]), int(numbers[2])


def integer(text: str | None, flag: str, default: int | None, *, at_least: int = 1) -> int | None:
  """Returns the integer value of a flag, or `default` if `text` is None.

  Args:
    text: digits, or a count as in `quantities.quantity`.
    flag: its name, for messages.
    default: the value without the flag.
    at_least: the smallest value.

  Raises:
    UserError: `text` is not an integer or is below `at_least`.
  """
  if text is None:
    return default
  try:
    value = quantity(text)
  except ValueError:
    value = at_least - 1
  if value < at_least:
    example = f"{flag}={at_least if default is None else default}"
    raise UserError(f"{flag}={text} is not an integer of at least {at_least}, as in {example}.")
  return value
