"""Flags of commands: today's names, and the old ones that stay as aliases."""

import importlib

import pytest

from clip_jax.cli.flags import ALIASES, parse
from clip_jax.errors import UserError


@pytest.mark.parametrize("arguments", [["--from=runs/a"], ["-from=runs/a"], ["--from", "runs/a"]])
def test_an_old_flag_sets_todays(arguments):
  assert parse(arguments, "", strings=("model",)).model == "runs/a"


def test_a_value_may_contain_the_name_of_a_flag():
  flags = parse(["--like=--from=a=b"], "", strings=("model", "query_image"))
  assert (flags.model, flags.query_image) == (None, "--from=a=b")


def test_a_command_with_a_flag_of_an_old_name_keeps_it():
  flags = parse(["--from=data"], "", strings=("from", "model"))
  assert getattr(flags, "from") == "data"
  assert flags.model is None


def test_an_old_flag_is_unknown_to_a_command_without_todays():
  with pytest.raises(UserError, match="no flag --sheet; there are --model"):
    parse(["--sheet=a.png"], "", strings=("model",))


@pytest.mark.parametrize("old", ["from", "model"])
@pytest.mark.parametrize(
  "command, others, message",
  [
    ("evaluate", [], "Nothing to evaluate"),
    ("score", [], "Where should the scores be written"),
    ("export", ["--format=open_clip"], "Set --out=DIR"),
    ("search", ["a car"], "Which images"),
  ],
)
def test_every_command_takes_its_model_by_both_names(command, others, message, old):
  module = importlib.import_module(f"clip_jax.{command}")
  with pytest.raises(UserError, match="Which model.*Set --model=MODEL"):
    module.main(others)
  with pytest.raises(UserError, match=message):  # It asks for the next thing.
    module.main([f"--{old}=runs/a", *others])


def test_help_shows_todays_names_only():
  for command in ("evaluate", "score", "export", "search"):
    text = importlib.import_module(f"clip_jax.{command}").HELP
    assert "--model=MODEL" in text
    assert not [old for old in ALIASES if f"--{old}" in text]
