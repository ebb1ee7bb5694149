"""Counts as people write them: 10_000, "10k", "10K", "1e6", "2.5M", "1B" or "10%"."""

import decimal
import re

_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_FORM = re.compile(
  r"\s*(\d[\d_]{0,30}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE]\+?(\d{1,2}))?\s*([kKMB%]?)\s*"
)
EXAMPLES = '10_000, "10k", "2.5M" or "1e6"'


def quantity(value: int | float | str, total: int | None = None) -> int:
  """Returns the count that a value stands for.

  Args:
    value: a number, or a str of digits with an optional point, underscores, exponent, and one of
      the units k or K (thousand), M (million), B (billion) and, with a `total`, %.
    total: number that a percentage refers to; the result is rounded down. None if there is none.

  Raises:
    ValueError: it is none of these, or not a whole number.
  """
  if isinstance(value, bool):
    raise ValueError(f"{value} is not a number")
  if isinstance(value, int):
    return value
  written = _FORM.fullmatch(f"{value:.17g}" if isinstance(value, float) else str(value))
  if not written or (written[3] == "%" and total is None):
    raise ValueError("not a number")
  with decimal.localcontext(prec=100):
    number = decimal.Decimal(written[1].replace("_", "")) * 10 ** int(written[2] or 0)
    if written[3] == "%":
      return int(number * total // 100)
    number *= _UNITS[written[3]]
    if number != number.to_integral_value():
      raise ValueError("not a whole number")
    return int(number)
