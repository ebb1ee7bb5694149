"""Values of options, checked against the type hints of the function or class that takes them.

A hint says what a value may be, with limits where the kind alone is not enough:

  @checked
  def adamw(*, learning_rate: NonNegativeFloat, b1: Annotated[float, Range(0, below=1)] = 0.9, ...

True and False are not numbers, and no number may be NaN, infinite, or too large for float32. An
integer passes for a float, a list for a tuple, and NumPy's numbers for Python's.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import dataclasses
import functools
import inspect
import math
import numbers
import os
from pathlib import Path
import reprlib
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from clip_jax.cli.suggest import did_you_mean
from clip_jax.errors import UserError

UNKNOWN = object()  # Stands for a value that is only known later; it passes every check.

_INTEGERS = 2**63  # Integers are below it, as NumPy's int64.
_FAR = 2**14
_FLOATS = float(np.finfo(np.float32).max)
_SCALARS = (bool, int, float, str, bytes, np.generic, type(None))
_Part = TypeVar("_Part", bound=Callable)


@dataclasses.dataclass(frozen=True)
class Range:
  """The limits of a number, in `Annotated[int, Range(1)]`.

  Attributes:
    low, high: the smallest and the largest value.
    above, below: exclusive limits.
  """

  low: float = -math.inf
  high: float = math.inf
  above: float = -math.inf
  below: float = math.inf

  def accepts(self, value: Any) -> bool:
    """Whether a number is within the limits."""
    return self.low <= value <= self.high and self.above < value < self.below

  def describe(self, kind: str, value: Any) -> str:
    """Describes the numbers within the limits: "an integer of at least 1"."""
    # A limit of the machine is of interest only to someone who exceeds it.
    exceeded = isinstance(value, (int, float)) and value > self.high
    most = self.high if self.high < _FAR or exceeded else math.inf
    low = f"at least {_number(self.low)}" if self.low > -math.inf else ""
    low = f"above {_number(self.above)}" if self.above > -math.inf else low
    high = f"at most {_number(most)}" if most < math.inf else ""
    high = f"below {_number(self.below)}" if self.below < math.inf else high
    if low.startswith("at least") and high.startswith("at most"):
      return f"{kind} from {_number(self.low)} to {_number(self.high)}"
    limits = " and ".join(limit for limit in (low, high) if limit)
    return f"{kind} {'of ' if limits.startswith('at ') else ''}{limits}"


@dataclasses.dataclass(frozen=True)
class Length:
  """The minimum and maximum number of entries, in `Annotated[tuple[int, ...], Length(1)]`."""

  low: int
  high: float = math.inf

  def accepts(self, value: Any) -> bool:
    """Whether a value has as many entries."""
    return self.low <= len(value) <= self.high

  def describe(self, kind: str, value: Any) -> str:
    """Describes values with as many entries."""
    most = f"{self.low} to {_number(self.high)}" if self.high < math.inf else f"{self.low} or more"
    return kind.replace("a tuple", f"a tuple of {most} entries", 1)


# Compared by identity, because hints must be hashable, and a table of names may not be.
@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
  """The names in a table, in `Annotated[str, OneOf(SIZES)]`."""

  names: Collection[str]

  def accepts(self, value: Any) -> bool:
    """Whether a value is one of the names."""
    return value in self.names

  def describe(self, kind: str, value: Any) -> str:
    """Lists the names."""
    return _listed(self.names)


@dataclasses.dataclass(frozen=True)
class Where:
  """A further condition, in `Annotated[str, Where(is_pattern, "a regular expression")]`.

  Attributes:
    condition: value -> whether it is accepted; the value is of the annotated type.
    description: what the values are that it accepts.
  """

  condition: Callable[[Any], bool]
  description: str

  def accepts(self, value: Any) -> bool:
    """Whether a value meets the condition."""
    return self.condition(value)

  def describe(self, kind: str, value: Any) -> str:
    """Describes the values that are accepted."""
    return self.description


_LIMITS = (Range, Length, OneOf, Where)

# Counts, such as of steps, examples and tokens: what int32 holds.
PositiveInt = Annotated[int, Range(1, 2**31 - 1)]
NonNegativeInt = Annotated[int, Range(0, 2**31 - 1)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(above=0, high=1)]
Probability = Annotated[float, Range(0, 1)]
Records = Annotated[int, Range(1, 2**63 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # JAX would drop the higher bits of a larger one.
Width = Annotated[int, Range(1, 2**20)]  # Of an array's axis; products of three fit into int64.
Depth = Annotated[int, Range(0, 2**16)]
Stages = Annotated[tuple[Annotated[int, Range(1, 2**16)], ...], Length(1, 8)]
ContextLength = Annotated[int, Range(1, 2**20)]
Pixels = Annotated[int, Range(1, 2**14)]
ImageSize = Pixels | tuple[Pixels, Pixels]  # The side of a square, or (height, width).
FilePath = str | Path


def check_arguments(fn: Callable, arguments: Mapping[str, Any], where: str = "") -> None:
  """Checks arguments by the type hints of the function or class that takes them.

  Hints that name a class or protocol only exclude plain values; `clip_jax.interfaces` checks parts.

  Args:
    fn: the function or class.
    arguments: values by name, `UNKNOWN` for those not known yet; arguments may be missing.
    where: path of the arguments in a config, such as "config.train", for the message.

  Raises:
    UserError: a value is not what its hint says. The message has the value, the expectation, and
      the default as an example.
  """
  hints, defaults = hints_of(fn), _defaults(fn)
  for name, value in arguments.items():
    if name in hints and not _matches(value, hints[name]):
      path, wrong, hint = _innermost(name, value, hints[name])
      default = defaults.get(name, UNKNOWN) if path == name else UNKNOWN
      raise UserError(_message(fn.__name__, path, wrong, hint, default, where))


def check_fields(fields: Any, hints: Mapping[str, Any], where: str) -> None:
  """Checks the fields of a JSON object by type hints; a field may be missing.

  Args:
    fields: the object; fields without a hint may hold anything.
    hints: type hints by field.
    where: file, and the place in it, for the message.

  Raises:
    UserError: it is not an object, or a field is not what its hint says.
  """
  if not isinstance(fields, Mapping):
    raise UserError(f"{where} is {shorten(fields)}; expected an object with fields.")
  for name, hint in hints.items():
    if name in fields and not _matches(fields[name], hint):
      path, wrong, inner = _innermost(name, fields[name], hint)
      raise UserError(f"{where}: {path} is {shorten(wrong)}; expected {_described(inner, wrong)}.")


def checked(part: _Part) -> _Part:
  """Decorator: the function or class checks its arguments by their type hints when it is called."""
  called: Any = part.__init__ if inspect.isclass(part) else part  # type: ignore[misc]
  signature = inspect.signature(called)

  @functools.wraps(called)
  def call(*args, **kwargs):
    try:
      given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # Let Python's own message name the function.
      return called(*args, **kwargs)
    check_arguments(part, {n: v for n, v in given.items() if n != "self"})
    return called(*args, **kwargs)

  if not inspect.isclass(part):
    return typing.cast(_Part, call)
  part.__init__ = call  # type: ignore[misc, method-assign]
  return part


@functools.cache
def hints_of(fn: Callable) -> dict[str, Any]:
  """Type hints of a function's or class's arguments, with their limits; {} if they are unknown."""
  try:
    # NNX's metaclass hides the signature of a class.
    hints = typing.get_type_hints(
      fn.__init__ if inspect.isclass(fn) else fn,  # type: ignore[misc]
      include_extras=True,
    )
  except (NameError, AttributeError):  # Names may be imported only under TYPE_CHECKING.
    return {}
  return {name: hint for name, hint in hints.items() if name != "return"}


@functools.cache
def _defaults(fn):
  called = fn.__init__ if inspect.isclass(fn) else fn
  parameters = inspect.signature(called).parameters.items()
  return {n: p.default for n, p in parameters if p.default is not p.empty}


def _options(hint: Any) -> tuple[Any, ...]:
  """The alternatives of a union; the hint itself if it is none."""
  union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  return typing.get_args(hint) if union else (hint,)


def _limits(hint: Any) -> tuple[Any, list[Any]]:
  """The type that is annotated, and the limits of this module."""
  if typing.get_origin(hint) is not Annotated:
    return hint, []
  kind, *notes = typing.get_args(hint)
  return kind, [note for note in notes if isinstance(note, _LIMITS)]


def _matches(value: Any, hint: Any) -> bool:
  if value is UNKNOWN:
    return True
  options = _options(hint)
  if len(options) > 1:
    return any(_matches(value, option) for option in options)
  kind, limits = _limits(hint)
  if limits or kind is not hint:
    return _matches(value, kind) and all(limit.accepts(value) for limit in limits)
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    number = isinstance(value, numbers.Integral) and not _is_bool(value)
    return (isinstance(value, str) or number) and value in arguments
  if origin is tuple and arguments[-1] is not Ellipsis:
    return (
      isinstance(value, (tuple, list))
      and len(value) == len(arguments)
      and all(map(_matches, value, arguments))
    )
  if origin is Callable:
    return callable(value)
  if inspect.isclass(origin) and issubclass(origin, Mapping):
    return isinstance(value, Mapping) and all(_matches(v, arguments[1]) for v in value.values())
  if inspect.isclass(origin) and issubclass(origin, Sequence):
    return isinstance(value, (tuple, list)) and all(_matches(v, arguments[0]) for v in value)
  return _is_of_kind(value, hint)


def _is_bool(value: Any) -> bool:
  return isinstance(value, (bool, np.bool_))


def _is_of_kind(value: Any, kind: Any) -> bool:
  """Whether a value is of a kind that is neither annotated nor composed of others."""
  if kind in (None, types.NoneType):
    return value is None
  if kind is bool:
    return _is_bool(value)
  if kind is int:
    whole = isinstance(value, numbers.Integral) and not _is_bool(value)
    return whole and -_INTEGERS <= value < _INTEGERS
  if kind is float:
    # An int may be too large for a float, but not for this comparison; it is false for NaN.
    real = isinstance(value, numbers.Real) and not _is_bool(value)
    return real and -_FLOATS <= value <= _FLOATS
  if kind is Callable:
    return callable(value)
  if kind in (str, tuple, list, dict):
    return isinstance(value, (tuple, list) if kind in (tuple, list) else kind)
  if kind is Path:
    return isinstance(value, os.PathLike)
  if kind is Any or not inspect.isclass(kind):  # A type variable, for example.
    return True
  if getattr(kind, "_is_protocol", False):
    return not isinstance(value, _SCALARS)  # A list may be a source.
  return isinstance(value, kind) or not isinstance(value, (*_SCALARS, tuple, list, dict))


def _innermost(path: str, value: Any, hint: Any) -> tuple[str, Any, Any]:
  """Follows a dict down to its wrong entry: the path, value and hint there."""
  kind, _ = _limits(hint)
  origin = typing.get_origin(kind)
  if inspect.isclass(origin) and issubclass(origin, Mapping) and isinstance(value, Mapping):
    inner = typing.get_args(kind)[1]
    for name, one in value.items():
      if not _matches(one, inner):
        return _innermost(f"{path}.{name}", one, inner)
  return path, value, hint


def _message(part, path, value, hint, default, where):
  name = f"{where}.{path}" if where else path
  text = f"{name} is {shorten(value)}; {part} expects {_described(hint, value)}"
  if default is not UNKNOWN and where and "[" not in name:  # As on the command line.
    shown = default if isinstance(default, str) else repr(default).replace(" ", "")
    text += f", as in --{name}={shown}"
  elif default is not UNKNOWN:
    text += f", as in {path}={default!r}"
  names = [choice for choice in _choices(hint) if isinstance(choice, str)]
  return f"{text}.{did_you_mean(value, names) if isinstance(value, str) else ''}"


_KINDS: dict[Any, str] = {
  int: "an integer",
  float: "a number",
  str: "a string",
  bool: "True or False",
  Path: "a path",
  Callable: "a function",
}


def _described(hint: Any, value: Any = None) -> str:
  """Describes what a hint accepts instead of `value`: "an integer of at least 1 or None"."""
  options = _options(hint)
  if len(options) > 1:
    shown = [o for o in options if o is not types.NoneType and not (o is int and float in options)]
    if len(shown) == 1 and (choices := list(_choices(shown[0]))):
      return _listed([*choices, None])
    texts = [*map(functools.partial(_described, value=value), shown)]
    return " or ".join(dict.fromkeys([*texts, *["None"] * (types.NoneType in options)]))
  kind, limits = _limits(hint)
  if kind is not hint:
    text = _described(kind, value)
    for limit in limits:
      text = limit.describe(text, value)
    return text
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return _listed(arguments)
  if origin is tuple and arguments[-1] is not Ellipsis:
    each = list(dict.fromkeys(map(_described, arguments)))
    return f"a tuple of {len(arguments)} entries, {'each ' * (len(each) == 1)}{', '.join(each)}"
  if origin is Callable:
    return "a function"
  if inspect.isclass(origin) and issubclass(origin, (Mapping, Sequence)):
    mapping = issubclass(origin, Mapping)
    entry = arguments[1 if mapping else 0]
    entries = (
      "" if entry is Any else f", each {'value' if mapping else 'entry'} {_described(entry)}"
    )
    return f"{'a dict' if mapping else 'a tuple'}{entries}"
  if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    if not -math.inf < value < math.inf:
      return "a finite number"
    return "a number" if abs(value) <= _FLOATS else "a number that float32 can hold"
  name = getattr(hint, "__name__", str(hint))
  return _KINDS.get(hint) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _choices(hint: Any) -> Iterator[Any]:
  """The values that a hint lists."""
  for option in _options(hint):
    kind, limits = _limits(option)
    if typing.get_origin(kind) is Literal:
      yield from typing.get_args(kind)
    for limit in limits:
      if isinstance(limit, OneOf):
        yield from limit.names


class _Shorten(reprlib.Repr):
  """`repr` of bounded length, also of integers with more digits than Python prints."""

  def repr_int(self, x, level):
    if abs(x) < 10**20:
      return repr(x)
    digits = int((x.bit_length() - 1) * math.log10(2)) + 1  # Or one more.
    return f"an integer of {digits + (abs(x) >= 10**digits)} digits"


def shorten(value: Any) -> str:
  """`repr` of a value in a message: of at most about 100 characters."""
  form = _Shorten()
  form.maxstring = form.maxother = 60
  form.maxtuple = form.maxlist = form.maxdict = 4
  return form.repr(value)


def _listed(choices: Collection[Any]) -> str:
  *others, last = map(repr, choices)
  return f"{', '.join(others)} or {last}" if others else last


def _number(x: float) -> str:
  return f"{x:,}" if isinstance(x, int) else f"{x:g}"
