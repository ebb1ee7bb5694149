"""--help of every command lists all of its flags and its exit codes."""

import importlib
import re

import pytest

from clip_jax.errors import UserError

STUDY = ("run", "table", "figures", "fit", "laws", "calibrate", "predict", "advise", "verdicts")
CONFIG = "--config=configs/quickstart.py"
COMMANDS = [
  ("train", CONFIG),
  ("evaluate",),
  ("score",),
  ("prepare",),
  ("export",),
  ("plan", CONFIG),
  ("bench", "step"),
  ("search",),
  ("init.__main__",),
  *(("study.__main__", what) for what in STUDY),
  ("mix.__main__",),
  ("embed.__main__",),
]


@pytest.mark.parametrize("name, arguments", [(name, given) for name, *given in COMMANDS])
def test_help_lists_every_flag_and_the_exit_codes(name, arguments, capsys):
  module = importlib.import_module(f"clip_jax.{name}")
  with pytest.raises(SystemExit) as end:
    module.main([*arguments, "--help"])
  text = capsys.readouterr().out
  assert end.value.code in (0, None)
  with pytest.raises(UserError, match="There is no flag --zzz; there are") as mistake:
    module.main([*arguments, "--zzz"])
  flags = re.findall(r"--(\w[\w-]*)", str(mistake.value).partition("there are")[2])
  assert flags
  assert not [flag for flag in flags if not re.search(rf"--{flag}\b", text)]
  assert re.search(r"(?s)Exit codes: 0 (?=.* 1 )(?=.* 2 ).*130 .*Ctrl-C", text)
