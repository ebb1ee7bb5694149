"""Configs as recorded function calls: complete, printable, stored as JSON, executed by `build`."""

from collections.abc import Callable, Iterator
import difflib
import functools
import importlib
import inspect
import json
import types
import typing
from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from clip_jax.errors import UserError


def call(fn: Callable, **kwargs: Any) -> ConfigDict:
  """Records the call `fn(**kwargs)`, with every default filled in, for `build` to execute.

  Arguments without a default may be omitted if they are passed to `build`.

  Raises:
    UserError: `fn` has no argument of that name; the message lists its arguments and suggests the
      closest one.
  """
  parameters = _parameters(fn)
  for name in kwargs:
    if name not in parameters:
      close = difflib.get_close_matches(name, parameters, 1)
      raise UserError(
          f"{fn.__qualname__} has no argument {name!r}; it has {', '.join(parameters)}."
          + (f" Did you mean {close[0]!r}?" if close else ""))
  hints = typing.get_type_hints(_target(fn))
  defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
  return ConfigDict({"fn": f"{fn.__module__}:{fn.__qualname__}",
                     **{n: _field(v, hints.get(n)) for n, v in (defaults | kwargs).items()}})


def _field(value, hint):
  """Wraps `value` in a typed FieldReference if overrides of another type must be accepted."""
  if typing.get_origin(hint) not in (types.UnionType, typing.Union):
    return value
  kinds = [k for k in typing.get_args(hint) if k is not types.NoneType]
  plain = [k in (int, float, str, bool) for k in kinds]
  # A size may be 1000 or "10M", 224 or (224, 288), so an override may change the type.
  if len(kinds) > 1 and all(p or typing.get_origin(k) is tuple for p, k in zip(plain, kinds)):
    return config_dict.FieldReference(value, field_type=object)
  if not all(plain):
    return value
  return config_dict.placeholder(kinds[0]) if value is None else value


def build(spec: ConfigDict, **context: Any) -> Any:
  """Executes a call recorded by `call`, inner calls first.

  Args:
    spec: the result of `call`, possibly after a JSON round trip.
    **context: values known only at build time (`rngs=`, `model=`, `total_steps=`). Each is passed
      to every call, inner ones included, that has an argument of that name and no value for it.

  Raises:
    UserError: an argument without a default has no value.
  """
  fn = function(spec.fn)
  arguments = {name: _built(value, context) for name, value in spec.items() if name != "fn"}
  for name, parameter in _parameters(fn).items():
    if name not in arguments and name in context:
      arguments[name] = context[name]
    elif name not in arguments and parameter.default is parameter.empty:
      raise UserError(f"{spec.fn} needs a value for its argument {name!r}: call("
                      f"{fn.__name__}, {name}=...) in the config.")
  return fn(**arguments)


def function(name: str) -> Callable:
  """Imports the function or class named `"module:qualified.name"`.

  Raises:
    UserError: it does not exist, or the module only imports it. Trusting a module covers the code
      defined in it, so a config must not reach `os.system` through a module that imports `os`.
  """
  module, _, path = name.partition(":")
  try:
    found: Any = importlib.import_module(module)
    found = functools.reduce(getattr, path.split("."), found)
  except (ModuleNotFoundError, AttributeError) as error:
    cell = (" It was defined in a notebook cell or a script: run that first, or move the "
            "definition into a module that commands can import." if module == "__main__" else "")
    raise UserError(f"The config calls {name}, which was not found: {error}.{cell}") from error
  written = f"{getattr(found, '__module__', None)}:{getattr(found, '__qualname__', None)}"
  if written != name:
    raise UserError(f"The config calls {name}, which is defined as {written}. A config must name "
                    "the module that defines a function, because trust in a module does not extend "
                    "to its imports.")
  return found


def _built(value, context):
  if isinstance(value, ConfigDict):
    if "fn" in value:
      return build(value, **context)
    return {k: _built(v, context) for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(_built(v, context) for v in value)
  return value


def _parameters(fn):
  target = _target(fn)
  return {n: p for n, p in inspect.signature(target).parameters.items()
          if n != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _target(fn):
  return fn.__init__ if inspect.isclass(fn) else fn  # NNX's metaclass hides a class's signature.


def to_json(config: ConfigDict) -> str:
  """Returns the complete config as indented JSON with sorted keys."""
  return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def entries(config: ConfigDict) -> dict[str, str]:
  """Returns every value of the config as JSON, by its command-line name (`data.batch_size`)."""
  def walked(prefix, value):
    if isinstance(value, dict) and value:
      for name, inner in value.items():
        yield from walked(f"{prefix}.{name}", inner)
    else:
      yield prefix.removeprefix("."), json.dumps(value)
  return dict(walked("", json.loads(to_json(config))))


def from_json(text: str, *, trust: tuple[str, ...] = ()) -> ConfigDict:
  """Parses a config written by `to_json`.

  Building a config calls the functions that it names, and the config in a checkpoint comes from
  whoever made the checkpoint. It may therefore name only functions of this package and of modules
  that the user trusts.

  Args:
    text: JSON.
    trust: names of additional modules with functions that the config may call.

  Raises:
    UserError: the config names code outside `clip_jax` and `trust`.
  """
  config = _from_plain(json.loads(text))
  for name in sorted(set(_functions(config))):
    module = name.partition(":")[0]
    if module.split(".")[0] != "clip_jax" and module not in trust:
      raise UserError(
          f"The config calls {name}, which is not part of clip_jax. If you trust this module, add "
          f"trust=({module!r},) to the call, or --trust={module} to the command.")
  return config


def modules(config: ConfigDict) -> tuple[str, ...]:
  """Returns the names of the modules that the config calls functions of."""
  return tuple(sorted({name.partition(":")[0] for name in _functions(config)}))


def _functions(value: Any) -> Iterator[str]:
  if isinstance(value, ConfigDict):
    for name, inner in value.items():
      if name == "fn":
        yield inner
      yield from _functions(inner)
  elif isinstance(value, (tuple, list)):
    for inner in value:
      yield from _functions(inner)


def _from_plain(value):
  """Converts dicts to ConfigDicts, including those inside lists, and lists to tuples."""
  if isinstance(value, dict):
    return ConfigDict({k: _from_plain(v) for k, v in value.items()})
  return tuple(map(_from_plain, value)) if isinstance(value, list) else value
