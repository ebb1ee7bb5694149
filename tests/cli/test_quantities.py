"""Counts as people write them."""

import contextlib
import io
import json

import pytest

from clip_jax import train
from clip_jax.cli.flags import integer
from clip_jax.cli.quantities import quantity
from clip_jax.errors import UserError


@pytest.mark.parametrize(
  "written, value",
  [
    ("7", 7),
    ("10_000", 10_000),
    ("10k", 10_000),
    ("10K", 10_000),
    ("1e6", 10**6),
    ("1.5E3", 1500),
    ("2.5M", 2_500_000),
    ("1B", 10**9),
    ("0.1k", 100),
    (".5k", 500),
    (" 3 M ", 3_000_000),
    (1e6, 10**6),
    (12, 12),
    (-3, -3),
    ("9007199254740993", 2**53 + 1),  # More digits than a float has.
    ("10%", 33),
    ("33.4%", 111),
  ],
)
def test_quantities(written, value):
  assert quantity(written, 333) == value


@pytest.mark.parametrize(
  "written",
  ["", "k", "1.5", "0.1", "1e-3", "-5", "10 000", "1kk", "1e400", "nan", "10m", True, 0.5],
)
def test_other_texts_are_refused(written):
  with pytest.raises(ValueError):
    quantity(written, 100)


def test_a_percentage_needs_a_total():
  with pytest.raises(ValueError):
    quantity("10%")


def test_flags_are_quantities():
  assert integer("2k", "--top", 20) == 2000 and integer(None, "--top", 20) == 20
  with pytest.raises(UserError, match="--top=0.5 is not an integer of at least 1, as in --top=20"):
    integer("0.5", "--top", 20)


@pytest.mark.parametrize(
  "field, written, value",
  [
    ("train.steps", "1k", 1000),
    ("data.batch_size", "1e2", 100),
    ("data.size", "1e3", 1e3),
    ("data.size", "2.5K", "2.5K"),
    ("data.size", "10%", "10%"),
    ("data.size", "1_000", 1000),
    ("train.save_every", "10_000", 10_000),
  ],
)
def test_fields_of_a_config_are_quantities(field, written, value):
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    train.main(["--config=quickstart", f"--config.{field}={written}", "--print"])
  section, name = field.split(".")
  assert json.loads(out.getvalue())[section][name] == value
