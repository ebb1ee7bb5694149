"""Config files by path or by installed name, and the functions that they define."""

from collections.abc import Callable
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from clip_jax.cli.suggest import closest
from clip_jax.errors import UserError


def installed() -> Path:
  """The folder of the configs that come with the package."""
  spec = importlib.util.find_spec("clip_jax.configs")
  if spec is None or not spec.submodule_search_locations:
    raise UserError(
      "The configs of clip_jax are not installed. Install the package, in a clone with "
      "pip install -e ., or give the path of a config file."
    )
  return Path(next(iter(spec.submodule_search_locations)))


def resolve(where: str, flag: str = "config") -> tuple[Path, str]:
  """Finds a config file.

  Args:
    where: FILE.py or the name of a config that comes with the package, as quickstart or
      study/recipe; both may be followed by `:ARGUMENT`. A path takes precedence.
    flag: name of the flag, for messages.

  Returns:
    Path of the file, and the argument, "" if there is none.

  Raises:
    UserError: there is no such file.
  """
  name, _, argument = where.partition(":")
  path = Path(name).expanduser()
  if path.is_file():
    return path, argument
  folder = installed()
  own = folder / Path(name.removeprefix("configs/")).with_suffix(".py")
  if not path.is_absolute() and own.is_file():
    return own, argument
  siblings = {str(p): p.stem for p in sorted(path.parent.glob("*.py")) if p.stem != "__init__"}
  names = [
    str(p.relative_to(folder).with_suffix(""))
    for p in sorted(folder.rglob("*.py"))
    if p.stem != "__init__"
  ]
  close = closest(path.stem, siblings.values())
  if close:
    near = f" Did you mean {path.with_name(close + '.py')}?"
  elif close := closest(name.removeprefix("configs/").removesuffix(".py"), names):
    near = f" Did you mean {close}?"
  elif siblings:
    near = f" Files in {path.parent}: {', '.join(siblings.values())}."
  else:
    near = f" Configs that come with the package: {', '.join(names)}."
  raise UserError(f"There is no {flag} file {name}.{near}")


def load_function(where: str, name: str, flag: str = "config", hint: str = "") -> Callable[[], Any]:
  """The function `name` of a config file, with the argument of `where` applied.

  Args:
    where: see `resolve`.
    hint: added to the message if the file does not define the function.

  Raises:
    UserError: there is no such file, it does not define the function, or takes no argument.
  """
  path, argument = resolve(where, flag)
  spec = importlib.util.spec_from_file_location(f"clip_jax_{flag}_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = getattr(module, name, None)
  if found is None:
    raise UserError(f"{path} does not define {name}().{hint}")
  if not argument:
    return found
  if not inspect.signature(found).parameters:
    raise UserError(f"{name}() of {path} takes no argument, but {argument!r} was given.")
  return lambda: found(argument)
