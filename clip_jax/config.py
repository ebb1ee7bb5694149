"""Configs: nested calls written down as data, checked when written, made by `build`, saved as JSON.

A call is a `ConfigDict` with the entry "fn", the public name of a function or class, and one entry
for each of its arguments. Parts of this package have stable names, `clip_jax.towers.Vit`: the
package that exports the part and the part's name in that package's `PARTS`. Saved runs therefore
survive a move of the source files. User code is named `module:qualified.name`.

A saved config is data from somebody else: of this package it can name only parts, of other modules
only functions that are defined in a module that the user trusts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import importlib
import inspect
import json
import os
from pathlib import Path
import types
import typing
from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax import old_names
from clip_jax.cli import values as values_lib
from clip_jax.cli.suggest import closest, did_you_mean
from clip_jax.errors import UserError
from clip_jax.interfaces import check_parts

FORMAT = 1  # Of config.json; older runs have no "format" and are read through `old_names`.

# The packages whose `PARTS` a saved config may name.
PACKAGES = (
  "towers",
  "model",
  "objectives",
  "data",
  "evaluators",
  "training",
  "parallel",
  "planning",
)
_DEEPEST = 64  # Nested values in a saved config; a run's config has about ten.


def call(fn: Callable, **kwargs: Any) -> ConfigDict:
  """Writes down the call `fn(**kwargs)` with all defaults filled in, for `build` to make later.

  Arguments without a default may be left out if whoever builds the call supplies them.

  Raises:
    UserError: `fn` has no argument of that name, in which case the message lists its arguments; or
      a config cannot name it, see `public_name`.
  """
  public, parameters, hints = public_name(fn), parameters_of(fn), _hints(fn)
  for name in kwargs:
    if name not in parameters:
      raise UserError(_no_argument(public, name, parameters))
  defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
  return ConfigDict(
    {"fn": public, **{n: _field(v, hints.get(n)) for n, v in (defaults | kwargs).items()}}
  )


def call_part(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> ConfigDict:
  """Writes down a call of an exported part, named in full or by its last name, such as "Vit".

  Args:
    name: `clip_jax.towers.Vit` or `Vit`.
    arguments, keywords: positional and keyword arguments.

  Raises:
    UserError: there is no such part, several parts have this name, or it lacks an argument.
  """
  parts = all_parts()
  found = [name] if name in parts else [part for part in parts if short_name(part) == name]
  if len(found) != 1:
    also = ", ".join(found)
    raise UserError(
      f"Several parts are called {name}: {also}. Write one of these."
      if found
      else f"There is no part called {name!r}; a call on the command line may name only parts that "
      f"clip_jax exports.{did_you_mean(name, [short_name(part) for part in parts])}"
    )
  fn = function(found[0])
  parameters = list(parameters_of(fn))
  if len(arguments) > len(parameters):
    raise UserError(
      f"{name} has {len(parameters)} arguments, not {len(arguments)}: {', '.join(parameters)}."
    )
  given = dict(zip(parameters, arguments))
  if twice := sorted(given.keys() & keywords):
    raise UserError(f"{name} receives {twice[0]} twice, by position and by name.")
  return call(fn, **given, **keywords)


def _field(value, hint):
  """Wraps `value` in a reference where the command line could not infer its type."""
  if typing.get_origin(hint) not in (types.UnionType, typing.Union):
    return value
  kinds = [_flag_kind(k) for k in typing.get_args(hint) if k is not types.NoneType]
  kinds = list(dict.fromkeys(kinds))
  plain = [k in (int, float, str, bool) for k in kinds]
  # A size is 1000 or "10M", an image size 224 or (224, 288): either form may replace the other.
  if len(kinds) > 1 and all(p or typing.get_origin(k) is tuple for p, k in zip(plain, kinds)):
    return config_dict.FieldReference(value, field_type=object)
  if not all(plain):
    return value
  return config_dict.placeholder(kinds[0]) if value is None else value


def _flag_kind(kind):
  """The type of an alternative on the command line: str for a path and for a choice of strings."""
  if typing.get_origin(kind) is typing.Literal:
    return type(typing.get_args(kind)[0])
  return str if kind is Path else kind


def build(spec: ConfigDict, **context: Any) -> Any:
  """Makes the call that `call` wrote down, inner calls first, after checking all their values.

  Args:
    spec: the result of `call`, or its JSON round trip.
    **context: values known only now (`rngs=`, `model=`, `total_steps=`). Each is passed to every
      call, inner ones included, that has an argument of that name and no value for it.

  Raises:
    UserError: an argument without a default has no value, the function has no such argument, a
      value is not what the part's type hint says, or an argument whose type hint is a protocol of
      `clip_jax.interfaces` lacks something that it needs.
  """
  check_values(spec)
  return _build(spec, context)


def check_values(config: Any, where: str = "") -> None:
  """Checks the values of all calls of parts in a config, so that a mistake is found before work.

  Args:
    config: a call, or a config that contains calls.
    where: its name on the command line, such as "config.data", for messages.

  Raises:
    UserError: a value is not what the type hint of its argument says, see `cli.values`.
  """
  if isinstance(config, ConfigDict):
    name = config.get("fn")
    if isinstance(name, str) and is_part(name):
      values = {n: _known(v) for n, v in config.items() if n != "fn"}
      values_lib.check_arguments(function(name), values, where)
    for name, value in config.items():
      check_values(value, f"{where}.{name}" if where else "")
  elif isinstance(config, (tuple, list)):
    for i, value in enumerate(config):
      check_values(value, f"{where}[{i}]" if where else "")


def _known(value):
  """The value, with `UNKNOWN` in place of what calls in it will return."""
  if isinstance(value, ConfigDict):
    return values_lib.UNKNOWN if "fn" in value else {k: _known(v) for k, v in value.items()}
  return tuple(map(_known, value)) if isinstance(value, (tuple, list)) else value


def _build(spec, context):
  fn = function(spec.fn)
  arguments = {name: _built(value, context) for name, value in spec.items() if name != "fn"}
  parameters = parameters_of(fn)
  for name in arguments:
    if name not in parameters:
      raise UserError(_no_argument(spec.fn, name, parameters))
  for name, parameter in parameters.items():
    if name not in arguments and name in context:
      arguments[name] = context[name]
    elif name not in arguments and parameter.default is parameter.empty:
      raise UserError(
        f"{spec.fn} needs a value for its argument {name!r}: call("
        f"{fn.__name__}, {name}=...) in the config."
      )
  check_parts(arguments, _hints(fn), fn.__name__)
  return fn(**arguments)


def public_name(fn: Callable) -> str:
  """Name of a function or class in a config: `clip_jax.towers.Vit` or `module:qualified.name`.

  Raises:
    UserError: a config cannot name it: it is defined inside a function, or it is in this package
      but not a part, so that a run with it could be trained but not loaded.
  """
  if not hasattr(fn, "__qualname__") or "<" in fn.__qualname__:
    raise UserError(
      f"A config cannot name {getattr(fn, '__qualname__', fn)!r}; expected a function or class "
      "that is defined at the top level of a module."
    )
  name = f"{fn.__module__}:{fn.__qualname__}"
  if not _is_ours(fn.__module__):
    return name
  package = ".".join(fn.__module__.split(".")[:2])
  part = f"{package}.{fn.__qualname__}"
  if not is_part(part) or getattr(importlib.import_module(package), fn.__qualname__) is not fn:
    raise UserError(
      f"A config cannot name {name}, because it is not a part that clip_jax exports. To make it "
      f"one, import it in {package} and add it to PARTS there; or move it to a module of your own."
    )
  return part


def is_part(name: str) -> bool:
  """Whether `name` is the public name of a part that this package exports."""
  package, _, part = name.rpartition(".")
  if package.removeprefix("clip_jax.") not in PACKAGES or not package.startswith("clip_jax."):
    return False
  return part in importlib.import_module(package).PARTS


def _is_ours(module):
  return module.split(".")[0] == "clip_jax"


def function(name: str) -> Callable:
  """The function or class with this name in a config, see `public_name`.

  Raises:
    UserError: it does not exist; it is in this package but not a part; or its module only imported
      it: to trust a module is to trust the code written in it, not `os.system` because it imports
      `os`.
  """
  if is_part(name):
    package, _, part = name.rpartition(".")
    return getattr(importlib.import_module(package), part)
  module, colon, path = name.partition(":")
  if not colon or _is_ours(module):
    raise UserError(f"The config calls {name}, {_not_exported(name)}")
  try:
    found: Any = importlib.import_module(module)
    found = functools.reduce(getattr, path.split("."), found)
  except (ImportError, AttributeError, ValueError) as error:
    cell = (
      " It was defined in a notebook cell or a script: run that first, or move it into a "
      "module that commands can import."
      if module == "__main__"
      else ""
    )
    raise UserError(f"The config calls {name}, which cannot be imported: {error}.{cell}") from error
  defined = f"{getattr(found, '__module__', None)}:{getattr(found, '__qualname__', None)}"
  if defined != name:
    raise UserError(
      f"The config calls {name}, which {module} only imports; it is defined as "
      f"{defined}. Name it by the module that defines it."
    )
  return found


def _not_exported(name):
  parts = {short_name(part): part for part in all_parts()}
  close = closest(short_name(name), parts)
  return "which is not one of the parts that clip_jax exports." + (
    f" Did you mean {parts[close]!r}?" if close else ""
  )


def all_parts() -> list[str]:
  """Public names of all parts, as `clip_jax.towers.Vit`."""
  return [
    f"clip_jax.{package}.{part}"
    for package in PACKAGES
    for part in importlib.import_module(f"clip_jax.{package}").PARTS
  ]


def _built(value, context):
  if isinstance(value, ConfigDict):
    if "fn" in value:
      return _build(value, context)
    return {k: _built(v, context) for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(_built(v, context) for v in value)
  return value


def parameters_of(fn: Callable) -> dict[str, inspect.Parameter]:
  """Returns the arguments that a call of a function or a class takes, by name."""
  target = _target(fn)
  return {
    n: p
    for n, p in inspect.signature(target).parameters.items()
    if n != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
  }


def _hints(fn):
  try:
    return typing.get_type_hints(_target(fn))
  except (NameError, AttributeError):  # Names may be imported only under TYPE_CHECKING.
    return {}


def _no_argument(fn, name, parameters):
  new = old_names.ARGUMENTS.get(fn, {}).get(name)
  return (
    f"{fn} has no argument {name!r}; it has {', '.join(parameters) or 'none'}."
    f"{f' It is called {new!r} now.' if new else did_you_mean(name, parameters)}"
  )


def _target(fn):
  return fn.__init__ if inspect.isclass(fn) else fn  # NNX's metaclass hides a class's signature.


def to_json(config: ConfigDict) -> str:
  """The whole config as indented JSON, keys sorted, without a format number.

  Raises:
    UserError: a value is neither a number, a string, a path or None, nor made of these.
  """
  return json.dumps(_plain(config, ""), indent=2, sort_keys=True)


def _plain(value, where):
  """The value as `json` accepts it."""
  if isinstance(value, config_dict.FieldReference):
    value = value.get()
  if isinstance(value, (ConfigDict, Mapping)):
    return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return [_plain(v, f"{where}.{i}") for i, v in enumerate(value)]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  if value is not None and not isinstance(value, (bool, int, float, str)):
    raise UserError(
      f"config{where} is {value!r}, which cannot be saved in config.json. A config holds numbers, "
      "strings, paths, None, calls, and tuples and dicts of these."
    )
  return value


def to_saved(config: ConfigDict) -> str:
  """The content of config.json: `to_json` with the format and the version that wrote it."""
  import clip_jax

  header = {"format": FORMAT, "clip_jax_version": clip_jax.__version__}
  return json.dumps(header | json.loads(to_json(config)), indent=2, sort_keys=True)


def entries(config: ConfigDict) -> dict[str, str]:
  """Every value of the config as JSON, by its command-line name, such as `data.batch_size`."""
  return _entries(json.loads(to_json(config)))


def saved_entries(text: str) -> dict[str, str]:
  """Every value of a saved config, as `entries`, with today's names and missing defaults.

  Calls nothing, and imports no module that the config names.

  Raises:
    UserError: it is not JSON, or was written in a way that no version understands.
  """
  plain = _parsed(text)
  for name in ("format", "clip_jax_version"):
    plain.pop(name, None)
  return _entries(_with_defaults(old_names.modernise(plain)))


def _entries(plain):
  def walk(prefix, value):
    if isinstance(value, dict) and value:
      for name, inner in value.items():
        yield from walk(f"{prefix}.{name}", inner)
    else:
      yield prefix.removeprefix("."), json.dumps(value, sort_keys=True)

  return dict(walk("", plain))


def _with_defaults(value):
  """Adds the defaults of arguments that calls of parts lack, in plain JSON values."""
  if isinstance(value, list):
    return [_with_defaults(v) for v in value]
  if not isinstance(value, dict):
    return value
  value = {name: _with_defaults(v) for name, v in value.items()}
  fn = value.get("fn")
  if isinstance(fn, str) and is_part(fn):
    for name, parameter in parameters_of(function(fn)).items():
      if name not in value and parameter.default is not parameter.empty:
        value[name] = _plain(parameter.default, f".{name}")
  return value


def from_json(text: str, *, trust: tuple[str, ...] | str = ()) -> ConfigDict:
  """The config that `to_saved` or `to_json` wrote, with today's names.

  A saved config comes from whoever made the checkpoint, and building it calls what it names. It may
  therefore name the exported parts of this package and, beyond them, only functions of modules that
  the user trusts.

  Args:
    text: JSON.
    trust: names of further modules whose functions it may call; not of this package.

  Raises:
    UserError: it is not JSON, was written in a newer format, names code outside the exported parts
      and `trust`, or has an argument that no longer exists.
  """
  plain = _parsed(text)
  written = plain.pop("format", 0)
  version = plain.pop("clip_jax_version", None)
  writer = f"clip_jax {version}" if version else "a version before format 1"
  if type(written) is not int or not 0 <= written <= FORMAT:
    raise UserError(
      f"The config has format {written!r}, written by {writer}; this version reads formats up to "
      f"{FORMAT}. Install the version that wrote it, or a newer one."
    )
  try:
    config = _from_plain(old_names.modernise(plain))
  except (AttributeError, ValueError) as error:  # Names that ConfigDict does not accept.
    raise UserError(f"The config is damaged: {error} Restore config.json.") from error
  trust = (trust,) if isinstance(trust, str) else tuple(trust)
  for spec in calls(config):
    _check_call(spec, trust, writer)
  return config


def _parsed(text):
  """The JSON object in `text`, not too deeply nested to be handled recursively."""
  try:
    plain = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"The config is not JSON: {error}. Restore config.json, or write it again from "
      "the config file of the run."
    ) from error
  if not isinstance(plain, dict):
    raise UserError(f"The config is {type(plain).__name__}, not a JSON object.")
  values = [plain]
  for _ in range(_DEEPEST):
    values = [
      inner
      for value in values
      if isinstance(value, (dict, list))
      for inner in (value.values() if isinstance(value, dict) else value)
    ]
  if values:
    raise UserError(f"The config is nested more than {_DEEPEST} levels deep.")
  return plain


def _check_call(spec, trust, writer):
  """Raises UserError if a call of a saved config is not allowed, or its arguments do not exist."""
  name = spec.fn
  if not isinstance(name, str):
    raise UserError(f"The config calls {name!r}, which is not the name of a function.")
  module, colon, _ = name.partition(":")
  if not is_part(name):
    if _is_ours(module):
      raise UserError(
        f"The config, written by {writer}, calls {name}, {_not_exported(name)} A saved config may "
        "name only these."
      )
    if not colon:
      raise UserError(
        f"The config calls {name!r}, which is neither a part of clip_jax nor of the form "
        "MODULE:NAME."
      )
    if module not in trust:
      raise UserError(
        f"The config calls {name}, which is not part of clip_jax. If you trust where the config "
        f"comes from, name the module: trust=({module!r},), or --trust={module} in a command."
      )
  parameters = parameters_of(function(name))
  for argument in spec:
    if argument != "fn" and argument not in parameters:
      raise UserError(
        f"The config was written by {writer}, and {_no_argument(name, argument, parameters)}"
      )


def modules(config: ConfigDict) -> tuple[str, ...]:
  """Names of the modules outside this package that a config's calls come from."""
  return tuple(sorted({spec.fn.partition(":")[0] for spec in calls(config) if ":" in spec.fn}))


def calls(value: Any) -> Iterator[ConfigDict]:
  """All calls in a config, outer ones first."""
  if isinstance(value, ConfigDict):
    if "fn" in value:
      yield value
    for inner in value.values():
      yield from calls(inner)
  elif isinstance(value, (tuple, list)):
    for inner in value:
      yield from calls(inner)


def _from_plain(value):
  """Dicts to ConfigDicts, those inside lists too; lists to tuples."""
  if isinstance(value, dict):
    return ConfigDict({k: _from_plain(v) for k, v in value.items()})
  return tuple(map(_from_plain, value)) if isinstance(value, list) else value


def short_name(name: str) -> str:
  """The last part of a name in a config: "Vit" of `clip_jax.towers.Vit`."""
  return name.replace(":", ".").rpartition(".")[2]
