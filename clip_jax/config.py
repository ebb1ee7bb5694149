"""Configs: nested calls written down as data, checked when written, made by `build`, saved as JSON.

A call is a `ConfigDict` with the entry "fn", the public name of a function or class, and one entry
for each of its arguments. Parts of this package have stable names, `clip_jax.towers.Vit`: the
package that exports the part and the part's name in that package's `PARTS`. Saved runs therefore
survive a move of the source files. User code is named `module:qualified.name`.
"""

from collections.abc import Callable, Iterator
import functools
import importlib
import inspect
import json
import types
import typing
from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from clip_jax import old_names
from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError
from clip_jax.interfaces import check_arguments

FORMAT = 1  # Of config.json; older runs have no "format" and are read through `old_names`.

# The packages whose `PARTS` a saved config may name.
PACKAGES = ("towers", "model", "objectives", "data", "evaluators", "training", "parallel")


def call(fn: Callable, **kwargs: Any) -> ConfigDict:
  """Writes down the call `fn(**kwargs)` with all defaults filled in, for `build` to make later.

  Arguments without a default may be left out if whoever builds the call supplies them.

  Raises:
    UserError: `fn` has no argument of that name; the message lists its arguments.
  """
  parameters = _parameters(fn)
  for name in kwargs:
    if name not in parameters:
      raise UserError(
        f"{fn.__qualname__} has no argument {name!r}; it has "
        f"{', '.join(parameters)}.{did_you_mean(name, parameters)}"
      )
  hints = typing.get_type_hints(_target(fn))
  defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
  return ConfigDict(
    {"fn": public_name(fn), **{n: _field(v, hints.get(n)) for n, v in (defaults | kwargs).items()}}
  )


def _field(value, hint):
  """Wraps `value` in a reference where the command line could not infer its type."""
  if typing.get_origin(hint) not in (types.UnionType, typing.Union):
    return value
  kinds = [k for k in typing.get_args(hint) if k is not types.NoneType]
  plain = [k in (int, float, str, bool) for k in kinds]
  # A size is 1000 or "10M", an image size 224 or (224, 288): either form may replace the other.
  if len(kinds) > 1 and all(p or typing.get_origin(k) is tuple for p, k in zip(plain, kinds)):
    return config_dict.FieldReference(value, field_type=object)
  if not all(plain):
    return value
  return config_dict.placeholder(kinds[0]) if value is None else value


def build(spec: ConfigDict, **context: Any) -> Any:
  """Makes the call that `call` wrote down, inner calls first.

  Args:
    spec: the result of `call`, or its JSON round trip.
    **context: values known only now (`rngs=`, `model=`, `total_steps=`). Each is passed to every
      call, inner ones included, that has an argument of that name and no value for it.

  Raises:
    UserError: an argument without a default has no value, the function has no such argument, or an
      argument whose type hint is a protocol of `clip_jax.interfaces` lacks something that it needs.
  """
  fn = function(spec.fn)
  arguments = {name: _built(value, context) for name, value in spec.items() if name != "fn"}
  parameters = _parameters(fn)
  for name in arguments:
    if name not in parameters and not _takes_any(fn):
      raise UserError(
        f"{spec.fn} has no argument {name!r}; it has {', '.join(parameters)}."
        f"{did_you_mean(name, parameters)}"
      )
  for name, parameter in parameters.items():
    if name not in arguments and name in context:
      arguments[name] = context[name]
    elif name not in arguments and parameter.default is parameter.empty:
      raise UserError(
        f"{spec.fn} needs a value for its argument {name!r}: call("
        f"{fn.__name__}, {name}=...) in the config."
      )
  check_arguments(arguments, typing.get_type_hints(_target(fn)), fn.__name__)
  return fn(**arguments)


def public_name(fn: Callable) -> str:
  """Name of a function or class in a saved config: `clip_jax.towers.Vit` or `module:name`."""
  package = fn.__module__.split(".")[:2]
  if package[0] == "clip_jax" and len(package) == 2 and package[1] in PACKAGES:
    exported = importlib.import_module(".".join(package))
    if getattr(exported, fn.__name__, None) is fn and fn.__name__ in exported.PARTS:
      return f"{'.'.join(package)}.{fn.__name__}"
  return f"{fn.__module__}:{fn.__qualname__}"


def is_part(name: str) -> bool:
  """Whether `name` is the public name of a part that this package exports."""
  package, _, part = name.rpartition(".")
  if package.removeprefix("clip_jax.") not in PACKAGES or not package.startswith("clip_jax."):
    return False
  return part in importlib.import_module(package).PARTS


def function(name: str) -> Callable:
  """The function or class with this name in a config, see `public_name`.

  Raises:
    UserError: it does not exist, or its module only imported it: to trust a module is to trust the
      code written in it, not `os.system` because it imports `os`.
  """
  name = old_names.current(name)
  if is_part(name):
    package, _, part = name.rpartition(".")
    return getattr(importlib.import_module(package), part)
  if ":" not in name:
    package, _, part = name.rpartition(".")
    parts = (
      getattr(importlib.import_module(package), "PARTS", ())
      if package in (f"clip_jax.{p}" for p in PACKAGES)
      else all_parts()
    )
    raise UserError(
      f"The config calls {name}, which clip_jax does not export.{did_you_mean(part, parts)}"
    )
  module, _, path = name.partition(":")
  try:
    found: Any = importlib.import_module(module)
    found = functools.reduce(getattr, path.split("."), found)
  except (ModuleNotFoundError, AttributeError) as error:
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
      return build(value, **context)
    return {k: _built(v, context) for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(_built(v, context) for v in value)
  return value


def _parameters(fn):
  target = _target(fn)
  return {
    n: p
    for n, p in inspect.signature(target).parameters.items()
    if n != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
  }


def _takes_any(fn):
  return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(_target(fn)).parameters.values())


def _target(fn):
  return fn.__init__ if inspect.isclass(fn) else fn  # NNX's metaclass hides a class's signature.


def to_json(config: ConfigDict) -> str:
  """The whole config as indented JSON, keys sorted, without a format number."""
  return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def to_saved(config: ConfigDict) -> str:
  """The content of config.json: `to_json` with the format and the version that wrote it."""
  import clip_jax

  header = {"format": FORMAT, "clip_jax_version": clip_jax.__version__}
  return json.dumps(header | json.loads(to_json(config)), indent=2, sort_keys=True)


def entries(config: ConfigDict) -> dict[str, str]:
  """Every value of the config as JSON, by its command-line name, such as `data.batch_size`."""

  def walk(prefix, value):
    if isinstance(value, dict) and value:
      for name, inner in value.items():
        yield from walk(f"{prefix}.{name}", inner)
    else:
      yield prefix.removeprefix("."), json.dumps(value)

  return dict(walk("", json.loads(to_json(config))))


def from_json(text: str, *, trust: tuple[str, ...] = ()) -> ConfigDict:
  """The config that `to_saved` or `to_json` wrote, with today's names.

  A saved config comes from whoever made the checkpoint, and building it calls what it names. It may
  therefore name the exported parts of this package and, beyond them, only functions of modules that
  the user trusts.

  Args:
    text: JSON.
    trust: names of further modules whose functions it may call.

  Raises:
    UserError: it is not JSON, was written in a newer format, names code outside the exported parts
      and `trust`, or has an argument that no longer exists.
  """
  try:
    plain = json.loads(text)
  except ValueError as error:
    raise UserError(
      f"The config is not JSON: {error}. Restore config.json, or write it again from "
      "the config file of the run."
    ) from error
  if not isinstance(plain, dict):
    raise UserError(f"The config is {type(plain).__name__}, not a JSON object.")
  written = plain.pop("format", 0)
  version = plain.pop("clip_jax_version", "before format 1")
  if not isinstance(written, int) or written > FORMAT:
    raise UserError(
      f"The config has format {written}, written by clip_jax {version}; this version "
      f"reads formats up to {FORMAT}. Install that version or a newer one."
    )
  config = _from_plain(old_names.modernise(plain))
  for spec in calls(config):
    _check_trusted(spec.fn, trust)
    _check_arguments(spec, version)
  return config


def _check_trusted(name, trust):
  if is_part(name):
    return
  module, colon, _ = name.partition(":")
  if colon and module in trust:
    return
  if name.split(".")[0] == "clip_jax":
    known = all_parts()
    raise UserError(
      f"The config calls {name}, which is not one of the parts that a saved config "
      f"may name.{did_you_mean(name, known)}"
    )
  raise UserError(
    f"The config calls {name}, which is not part of clip_jax. If you trust where the config "
    f"comes from, name the module: trust=({module!r},), or --trust={module} in a command."
  )


def _check_arguments(spec, version):
  fn = function(spec.fn)
  parameters = _parameters(fn)
  for name in spec:
    if name != "fn" and name not in parameters and not _takes_any(fn):
      raise UserError(
        f"The config was written by clip_jax {version} and passes {name!r} to {spec.fn}, which "
        f"no longer has that argument; it has {', '.join(parameters)}."
        f"{did_you_mean(name, parameters)}"
      )


def modules(config: ConfigDict) -> tuple[str, ...]:
  """Names of the modules and packages that a config's calls come from."""
  names = {spec.fn for spec in calls(config)}
  return tuple(sorted({n.partition(":")[0] if ":" in n else n.rpartition(".")[0] for n in names}))


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
