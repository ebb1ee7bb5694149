"""Arguments are checked against type hints with limits."""

from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
import re
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from clip_jax.cli.values import (
  UNKNOWN,
  FilePath,
  Fraction,
  ImageSize,
  Length,
  NonNegativeInt,
  OneOf,
  PositiveFloat,
  PositiveFraction,
  PositiveInt,
  Range,
  Seed,
  Where,
  check_arguments,
  checked,
  shorten,
)
from clip_jax.errors import UserError
from clip_jax.interfaces import Source

HUGE, NAN, INF = 10**400, float("nan"), float("inf")
SIZES = {"B": 1, "L": 2}


class Entry(os.PathLike):
  """A path that is not a `pathlib.Path`."""

  def __fspath__(self):
    return "a"


class Crop:
  """A class that hints can name."""


# Hint, values that it accepts, values that it does not.
CASES = [
  (int, [0, -5, 2**62, np.int32(3)], [None, True, np.True_, 1.0, NAN, "1", HUGE, 2**63, (1,)]),
  (float, [0, -1.5, 3, np.float32(2), 1e38], [None, True, NAN, INF, -INF, HUGE, 1e39, "1", [1.0]]),
  (bool, [True, False, np.False_], [None, 0, 1, "True"]),
  (str, ["", "a"], [None, 1, True, Path("a"), ("a",)]),
  (FilePath, ["a", Path("a"), Entry()], [None, 1, b"a"]),
  (int | None, [None, 1], [NAN, "None"]),
  (None, [None], [0]),
  (Any, [None, NAN, {}], []),
  (PositiveInt, [1, 2**31 - 1], [0, -1, 2**31, True]),
  (NonNegativeInt, [0], [-1]),
  (PositiveFloat, [1e-30, 5], [0, 0.0, -1, NAN, INF]),
  (Fraction, [0, 0.5, 1], [-0.1, 1.1, 50]),
  (PositiveFraction, [0.5, 1], [0]),
  (Seed, [0, 2**32 - 1], [-1, 2**32, None]),
  (Annotated[float, Range(0, below=1)], [0, 0.99], [1]),
  (Annotated[float, Range(above=-1)], [0], [-1]),
  (Annotated[int | float, Range(0)] | None, [None, 0, 0.5], [-0.5, NAN]),
  (Literal["mean", "map"], ["map"], [None, "Map", 1, ["map"]]),
  (Literal[-1] | PositiveInt, [-1, 1, np.int64(-1)], [0, -2, True, -1.0]),
  (Annotated[str, OneOf(SIZES)], ["B"], ["b", None, 1]),
  (Annotated[str, Where(str.isupper, "in capitals")], ["A"], ["a", 1]),
  (tuple[int, float], [(1, 2.0), [1, 2]], [(1,), (1, 2, 3), (1.5, 2), None, 1]),
  (tuple[PositiveInt, ...], [(), (1, 2), [1]], [(0,), (1, None), "12", 1]),
  (Annotated[tuple[int, ...], Length(1, 2)], [(1,), (1, 2)], [(), (1, 2, 3)]),
  (Sequence[str], [(), ["a"]], ["a", (1,), None]),
  (ImageSize, [224, (32, 48)], [0, -1, (32,), (32, 0), HUGE, 2**15, 22.0]),
  (str | tuple[str, ...] | Mapping[str, Any] | None, ["a", ("a",), {"a": 1}, None], [1, (1,)]),
  (Mapping[str, PositiveFloat], [{}, {"a": 1}], [{"a": 0}, {"a": None}, [("a", 1)]]),
  (dict[str, Crop], [{"a": Crop()}], [{"a": None}, {"a": "crop"}]),
  (Callable, [len], [None, "len"]),
  (Callable[[int], int], [len], [None, 3]),
  (list | None, [None, [1]], [1]),
  (Crop, [Crop(), object()], [None, 1, "crop", (), {}]),
  (Source, [[1], object()], [None, 1, "source"]),
  ("Undefined", [None, 1], []),
]


def accepts(hint, value):
  def part(x):
    return x

  part.__annotations__ = {"x": hint}
  try:
    check_arguments(part, {"x": value})
  except UserError as error:
    assert re.match(r"x(\.a)? is ", str(error)) and "; part expects " in str(error)
    assert len(str(error)) < 400
    return False
  return True


@pytest.mark.parametrize("hint, good, bad", CASES, ids=[str(case[0])[:60] for case in CASES])
def test_values_are_checked_by_kind_and_range(hint, good, bad):
  assert [value for value in good if not accepts(hint, value)] == []
  assert [value for value in bad if accepts(hint, value)] == []
  assert accepts(hint, UNKNOWN)


@checked
def schedule(*, warmup: NonNegativeInt, kind: Literal["cosine", "linear"] = "cosine", end=None):
  """A function of which all arguments but `end` are checked."""
  return warmup, kind, end


@checked
class Tower:
  """A class with a check."""

  def __init__(self, width: PositiveInt = 64, weights: Mapping[str, Fraction] | None = None):
    self.width, self.weights = width, weights


class Wide(Tower):
  """A subclass without a check of its own."""

  def __init__(self, width):
    super().__init__(width=2 * width)


def test_a_checked_function_or_class_refuses_wrong_arguments_and_takes_right_ones():
  assert schedule(warmup=3, end=NAN)[:2] == (3, "cosine")
  assert Tower(5).width == 5 and Wide(5).width == 10
  assert schedule.__name__ == "schedule" and Tower.__init__.__name__ == "__init__"
  for call in (
    lambda: schedule(warmup=-1),
    lambda: Tower(0),
    lambda: Tower(width=None),
    lambda: Wide(-1),
  ):
    with pytest.raises(UserError):
      call()


def test_a_checked_function_keeps_pythons_own_errors():
  with pytest.raises(TypeError, match="schedule.. missing 1 required keyword-only argument"):
    schedule()
  with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
    Tower(depth=1)


def message(fn, where="", **arguments):
  with pytest.raises(UserError) as error:
    check_arguments(fn, arguments, where)
  return str(error.value)


def test_the_message_has_the_part_the_argument_the_value_and_a_way_out():
  assert message(Tower, width=-1) == (
    "width is -1; Tower expects an integer of at least 1, as in width=64."
  )
  assert message(Tower, "config.model.image", width=None) == (
    "config.model.image.width is None; Tower expects an integer of at least 1, as in "
    "--config.model.image.width=64."
  )
  assert message(schedule, kind="cosin").endswith("Did you mean 'cosine'?")


def test_an_expectation_is_described_once():
  def part(x: Annotated[int | float, Range(0)], y: Seed | Literal[-1] | None = None):
    return x, y

  assert message(part, x=-1) == "x is -1; part expects a number of at least 0."
  assert message(part, y="a") == (
    "y is 'a'; part expects an integer of at least 0 or -1 or None, as in y=None."
  )


def test_choices_are_listed_with_none():
  def part(x: Annotated[str, OneOf(SIZES)] | None = None, y: Literal["a"] = "a"):
    return x, y

  assert message(part, x=1) == "x is 1; part expects 'B', 'L' or None, as in x=None."
  assert message(part, y="b") == "y is 'b'; part expects 'a', as in y='a'."


def test_a_limit_of_the_machine_is_named_only_where_it_is_exceeded():
  assert "an integer from 1 to 2,147,483,647" in message(Tower, width=2**31)
  assert "a number that float32 can hold" in message(_number, x=1e39)
  assert "a finite number" in message(_number, x=INF)


def _number(x: float):
  return x


def test_a_wrong_entry_of_a_dict_is_named():
  def mix(weights: Mapping[str, PositiveFloat]):
    return weights

  text = message(mix, "config.data.source", weights={"a": 1, "b": -2})
  assert text == ("config.data.source.weights.b is -2; mix expects a number above 0.")


@pytest.mark.parametrize(
  "value",
  [HUGE, 10**9999, "x" * 5000, list(range(5000)), {i: i for i in range(5000)}, [[HUGE] * 9]],
  ids=range(6),
)
def test_long_values_are_shortened(value):
  assert len(shorten(value)) < 250


def test_the_number_of_digits_is_exact():
  for digits in (30, 400, 401, 5000):
    assert shorten(10 ** (digits - 1)) == f"an integer of {digits} digits"
    assert shorten(-(10**digits) + 1) == f"an integer of {digits} digits"
