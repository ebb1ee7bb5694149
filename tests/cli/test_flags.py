"""Flags of commands: today's names, and the old ones that stay as aliases."""

import importlib
from pathlib import Path
import shutil

import pytest

import clip_jax
from clip_jax.cli.flags import ALIASES, parse
from clip_jax.errors import UserError
from clip_jax.training.startup import writable_folder
import run_config


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


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  names = ("model", "images", "runs", "out", "licence")
  flags = parse(
    ["--model=~/run", "--images=~", "--runs=~/a.csv,b.csv,~/c", "--out=x~/~", "--licence=CC-BY ~"],
    "",
    strings=names,
  )
  assert [getattr(flags, name) for name in names] == [
    f"{tmp_path}/run",
    str(tmp_path),
    f"{tmp_path}/a.csv,b.csv,{tmp_path}/c",
    "x~/~",
    "CC-BY ~",
  ]


def test_a_tilde_is_the_home_folder_in_configs_and_their_values(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copy(Path(__file__).parents[1] / "run_config.py", tmp_path / "mine.py")
  flags = parse(["--config=~/mine.py:7", "--config.train.init_from=~/run"], "", config=True)
  assert flags.config.train.steps == 7
  assert flags.config.train.init_from == f"{tmp_path}/run"


@pytest.mark.parametrize(
  "url", ["gs://bucket/run", "s3://b/r", "file:///tmp/x", "gs:/b", "hdfs://n"]
)
@pytest.mark.parametrize(
  "command",
  [
    ("train", "--config=quickstart", "--workdir={}"),
    ("evaluate", "--model=m", "--classification=d", "--out={}"),
    ("score", "--model=m", "--out={}"),
    ("search", "--model=m", "--images=d", "--contact_sheet={}", "a car"),
    ("export", "--model=m", "--format=open_clip", "--out={}"),
    ("plan", "--config=quickstart", "--topology=v5e:4x4", "--json={}"),
    ("bench", "loss", "--json={}"),
    ("bench", "step", "--profile={}"),
    ("prepare", "--from=x", "--format=folder", "--out={}"),
    ("study.__main__", "run", "--grid=study/recipe", "--out={}"),
  ],
  ids=" ".join,
)
def test_output_to_a_url_is_refused_at_once(command, url):
  name, *arguments = command
  with pytest.raises(UserError, match=rf"--\w+={url} is a URL.*Mount the bucket"):
    importlib.import_module(f"clip_jax.{name}").main([a.format(url) for a in arguments])


def test_a_run_or_model_at_a_url_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for where in ("gs://bucket/run", Path("gs://bucket/run")):
    with pytest.raises(UserError, match="--model=gs:/.* is a URL"):
      clip_jax.load(where)
    with pytest.raises(UserError, match="--workdir=gs:/.* is a URL"):
      clip_jax.run(run_config.get_config("2"), where)
  assert not list(tmp_path.iterdir())


def test_python_functions_take_the_home_folder_too(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  with pytest.raises(UserError, match=f"No model found in {tmp_path}/nowhere"):
    clip_jax.load("~/nowhere")
  assert writable_folder(Path("~/runs/a")) == tmp_path / "runs/a"


def test_help_shows_todays_names_only():
  for command in ("evaluate", "score", "export", "search"):
    text = importlib.import_module(f"clip_jax.{command}").HELP
    assert "--model=MODEL" in text
    assert not [old for old in ALIASES if f"--{old}" in text]


def test_a_config_file_without_get_config_is_an_error_after_another_config(tmp_path):
  """The functions of an earlier config do not stay."""
  (tmp_path / "good.py").write_text(
    "from ml_collections.config_dict import ConfigDict\ndef get_config(): return ConfigDict()"
  )
  (tmp_path / "bad.py").write_text("def get_grid(): pass")
  parse([f"--config={tmp_path}/good.py"], "", config=True)
  with pytest.raises(UserError, match=r"does not define get_config\(\)"):
    parse([f"--config={tmp_path}/bad.py"], "", config=True)
