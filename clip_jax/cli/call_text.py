"""Calls in overrides on the command line: --config.data.source="ArrayRecord('DIR')"."""

import ast
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

MakeCall = Callable[..., ConfigDict]  # (name, positional arguments, keyword arguments) -> call


def split_calls(arguments: list[str], flag: str) -> tuple[list[str], dict[str, str]]:
  """Separates the overrides that contain a call from the other arguments.

  Args:
    arguments: arguments of the command.
    flag: name of the config's flag, such as "config".

  Returns:
    (the other arguments, text of each call by its field, such as "data.source").

  Raises:
    UserError: an override changes a field inside one that is replaced by a call.
  """
  rest, texts, prefix = [], {}, f"--{flag}."
  for argument in arguments:
    name, equals, text = argument.partition("=")
    if name.startswith(prefix) and equals and _has_call(text):
      texts[name.removeprefix(prefix)] = text
    else:
      rest.append(argument)
  for field, text in texts.items():
    for argument in rest:
      if argument.startswith(f"{prefix}{field}."):
        raise UserError(
          f"{argument} changes a part of --{flag}.{field}, which is replaced as a whole. Write the "
          f"value into the call: --{flag}.{field}={text!r}."
        )
  return rest, texts


def set_call(config: ConfigDict, field: str, text: str, make: MakeCall, flag: str) -> None:
  """Replaces a field of a config by calls written as text.

  Args:
    config: the config, changed in place.
    field: path of the field, such as "data.source". It must exist, but a group of parts by name,
      such as `evaluators`, may get a new entry.
    text: a call of exported parts, or a list of calls, with literals and calls as arguments.
    make: writes down a call.
    flag: name of the config's flag, for messages.

  Raises:
    UserError: there is no such field, or the text is anything but such calls.
  """
  *groups, last = field.split(".")
  parent: Any = config
  for name in groups:
    _check_field(parent, name, flag, field)
    parent = parent[name]
  if not (isinstance(parent, ConfigDict) and groups and "fn" not in parent):
    _check_field(parent, last, flag, field)
  if isinstance(parent.get(last), str):  # A path such as "pictures (1)" reads like a call, too.
    parent[last] = text
    return
  value = _value(ast.parse(text.strip(), mode="eval").body, make, f"--{flag}.{field}={text}")
  with config.unlocked():
    if last in parent:
      del parent[last]  # A field keeps its type otherwise.
    parent[last] = value


def _has_call(text):
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False
  if isinstance(tree, (ast.List, ast.Tuple)):
    return any(isinstance(item, ast.Call) for item in tree.elts)
  return isinstance(tree, ast.Call) and isinstance(tree.func, (ast.Name, ast.Attribute))


def _check_field(parent, name, flag, field):
  if not isinstance(parent, ConfigDict) or name not in parent:
    names = list(parent) if isinstance(parent, ConfigDict) else []
    raise UserError(f"The config has no {field!r} for --{flag}.{field}.{did_you_mean(name, names)}")


def _value(node, make, where):
  """The value of a node: a call, a list of values, or a literal."""
  if isinstance(node, ast.Call):
    if any(isinstance(a, ast.Starred) for a in node.args) or any(
      k.arg is None for k in node.keywords
    ):
      raise UserError(f"{where}: * and ** are not supported.")
    return make(
      ast.unparse(node.func),
      [_value(a, make, where) for a in node.args],
      {k.arg: _value(k.value, make, where) for k in node.keywords},
    )
  if isinstance(node, (ast.List, ast.Tuple)):
    return tuple(_value(item, make, where) for item in node.elts)
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, RecursionError, MemoryError):
    raise UserError(
      f"{where}: {ast.unparse(node)!r} is not a literal or a call of a part that clip_jax exports. "
      "Anything else belongs in a config file."
    ) from None
