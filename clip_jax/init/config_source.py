"""Writes a config as a Python file that a person would write: nested calls without defaults."""

from collections.abc import Iterable, Mapping
import inspect
import json
import textwrap
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call, function
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.experiment import experiment

_WIDTH = 100


def config_source(config: ConfigDict, title: str, notes: Iterable[str] = ()) -> str:
  """Returns the text of a config file whose get_config() returns this config.

  Args:
    config: the result of `clip_jax.training.experiment.experiment`.
    title: first line of the docstring.
    notes: paragraphs of the docstring.
  """
  empty = lambda section: isinstance(section, ConfigDict) and not len(section)
  sections = {
    name: config[name]
    for name in inspect.signature(experiment).parameters
    if not (empty(config[name]) or config[name] == call(make_mesh) or config[name] == 0)
  }
  functions: set[tuple[str, str]] = set()
  body = _call("experiment", sections, 2, functions)
  functions |= {
    ("clip_jax.config", "call"),
    ("clip_jax.training.experiment", "experiment"),
  }
  modules: dict[str, list[str]] = {}
  for module, name in sorted(functions):
    modules.setdefault(module, []).append(name)
  imports = "\n".join(f"from {module} import {', '.join(n)}" for module, n in modules.items())
  paragraphs = "\n\n".join([title, *(textwrap.fill(note, _WIDTH) for note in notes)])
  paragraphs = paragraphs.replace("\\", "\\\\").replace('"""', "'''")
  return (
    f'"""{paragraphs}\n"""\n\n{imports}\n\n\ndef get_config():\n'
    f'  """Returns the config of a training run."""\n  return {body}\n'
  )


def _call(name, arguments, indent, functions, first=None):
  """Formats a call in one line if it fits, else with one argument per line."""
  inner = indent + 2
  flat = [
    *([first] if first else []),
    *(f"{k}={_source(v, inner, functions, flat=True)}" for k, v in arguments.items()),
  ]
  line = f"{name}({', '.join(flat)})"
  if len(line) + indent + 20 <= _WIDTH:
    return line
  parts = [
    *([first] if first else []),
    *(f"{k}={_source(v, inner, functions)}" for k, v in arguments.items()),
  ]
  return f"{name}(\n" + "".join(f"{' ' * inner}{part},\n" for part in parts) + " " * indent + ")"


def _source(value: Any, indent: int, functions: set, *, flat: bool = False) -> str:
  if isinstance(value, ConfigDict) and "fn" in value:
    fn = function(value.fn)
    functions.add((fn.__module__, fn.__qualname__))
    arguments = _without_defaults(fn, value)
    if flat:
      shown = (f"{k}={_source(v, indent, functions, flat=True)}" for k, v in arguments.items())
      return f"call({', '.join([fn.__qualname__, *shown])})"
    return _call("call", arguments, indent, functions, fn.__qualname__)
  if isinstance(value, (ConfigDict, Mapping)):
    items = [(json.dumps(k), v) for k, v in value.items()]
    return _listed("{", "}", items, indent, functions, flat)
  if isinstance(value, (tuple, list)) and any(isinstance(x, ConfigDict) for x in value):
    return _listed("(", ")", [(None, x) for x in value], indent, functions, flat)
  if isinstance(value, (tuple, list)):
    entries = [_source(x, indent, functions, flat=True) for x in value]
    return f"({', '.join(entries)}{',' if len(entries) == 1 else ''})"
  if isinstance(value, str) and value.isprintable():
    return json.dumps(value, ensure_ascii=False)
  return repr(value)


def _listed(begin, end, items, indent, functions, flat):
  entry = lambda key, value, **how: (
    (f"{key}: " if key else "") + _source(value, indent + 2, functions, **how)
  )
  line = begin + ", ".join(entry(k, v, flat=True) for k, v in items)
  line += "," if begin == "(" and len(items) == 1 else ""
  line += end
  if flat or len(line) + indent + 20 <= _WIDTH:
    return line
  lines = "".join(f"{' ' * (indent + 2)}{entry(k, v)},\n" for k, v in items)
  return f"{begin}\n{lines}{' ' * indent}{end}"


def _without_defaults(fn, spec):
  """Returns the arguments of a call that differ from the defaults."""
  called: Any = fn.__init__ if inspect.isclass(fn) else fn  # type: ignore[misc]
  parameters = inspect.signature(called).parameters
  differs = lambda name: (
    parameters[name].default is inspect.Parameter.empty
    or _plain(parameters[name].default) != _plain(spec[name])
  )
  return {name: spec[name] for name in parameters if name in spec and differs(name)}


def _plain(value):
  return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value
