"""Options are checked before anything is built: wrong values in every field of every config.

`python -m pytest -m slow tests/test_options.py` also tries the fields that configs share in each of
them, and every field on the command line.
"""

import functools
import inspect
import json
from pathlib import Path
import subprocess
import sys

import pytest

from clip_jax import evaluate, train
from clip_jax.cli.values import check_arguments, hints_of
from clip_jax.config import (
  all_parts,
  build,
  call,
  check_values,
  entries,
  from_json,
  function,
  to_json,
)
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.subset import Subset
from clip_jax.errors import UserError
from clip_jax.objectives.clip import Clip
from clip_jax.training.experiment import Training, check_sections
from clip_jax.training.setup import build_setup
from test_configs import CASES, module_of, with_data

HUGE = 10**400
VALUES = (None, 0, -1, float("nan"), float("inf"), HUGE, "nonsense", [1, "a"])
MORE_VALUES = (*VALUES, True, "", 0.5, 2**31 - 1, 1e300, {})
ROOT = Path(__file__).parent.parent


@functools.cache
def texts():
  """The JSON of each config, by its name."""
  return {
    case.id: to_json(with_data(module_of(case.values[0]).get_config(*case.values[1])))
    for case in CASES
  }


def changed(text, field, value):
  """A saved config with another value in one field, which may be of any kind."""
  plain = json.loads(text)
  *outer, last = field.split(".")
  functools.reduce(lambda inner, name: inner[name], outer, plain)[last] = value
  return from_json(json.dumps(plain))


@functools.cache
def first_fields():
  """The fields of each config, without arguments of parts that an earlier config has as well."""
  return distinct_fields(texts())


def distinct_fields(configs):
  seen, fields = set(), {}
  for name, text in configs.items():
    fields[name] = []
    for field in entries(from_json(text)):
      *outer, last = field.split(".")
      part = functools.reduce(lambda inner, key: inner[key], outer, json.loads(text)).get("fn", "")
      if (part, last) not in seen:
        seen.add((part, last))
        fields[name].append(field)
  return fields


def outcome(text, field, value):
  """Builds a config with another value in one field: "" if that works, else the message."""
  try:
    build_setup(changed(text, field, value))
  except UserError as error:
    assert len(str(error)) < 1000
    return str(error)
  return ""


def test_every_argument_of_every_part_has_a_limit_on_its_kind():
  """No argument may be NaN or a number of 400 digits, or of a kind that JSON does not have."""
  parts = all_parts()
  assert len(parts) > 50
  for part in parts:
    fn = function(part)
    called = fn.__init__ if inspect.isclass(fn) else fn
    assert hasattr(called, "__wrapped__"), f"{part} is not @checked"
    names = [name for name in inspect.signature(called).parameters if name != "self"]
    assert set(names) == set(hints_of(fn)), part
    for name in names:
      for value in (float("nan"), -float("inf"), HUGE, -HUGE):
        with pytest.raises(UserError, match=rf"^{name} is .*; {fn.__name__} expects "):
          check_arguments(fn, {name: value})


def test_the_defaults_of_every_part_are_accepted():
  for part in all_parts():
    check_values(call(function(part)))


@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_a_wrong_value_in_any_field_is_a_user_error(name):
  for field in first_fields()[name]:
    for value in MORE_VALUES:
      outcome(texts()[name], field, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_a_wrong_value_in_any_field_of_any_config_is_a_user_error(name):
  for field in entries(from_json(texts()[name])):
    for value in VALUES:
      outcome(texts()[name], field, value)


@pytest.mark.parametrize(
  "field, value",
  [
    ("train.log_every", None),
    ("train.microbatches", None),
    ("train.microbatches", 0),
    ("train.max_checkpoints", 0),
    ("train.max_checkpoints", -1),
    ("train.epochs", float("nan")),
    ("train.epochs", 0),
    ("train.samples", "9" * 400 + "B"),
    ("train.samples", "-5"),
    ("train.steps", 2**31),
    ("mesh.fsdp", 0),
    ("mesh.devices", [0]),
    ("seed", None),
    ("seed", -1),
    ("seed", 2**32),
    ("seed", True),
    ("objective.temperature", -1),
    ("objective.max_scale", 0.5),
    ("objective.chunk_size", 0),
    ("model.image.width", -1),
    ("model.text.width", HUGE),
    ("model.text.vocab_size", HUGE),
    ("model.text.context_length", 2**40),
    ("model.text.activation", None),
    ("optimizer.learning_rate", None),
    ("optimizer.learning_rate", "high"),
    ("optimizer.b2", 1.0),
    ("optimizer.grad_clip_norm", float("inf")),
    ("optimizer.decay_params", ".*/kernel"),
    ("optimizer.decay_params", ["*kernel"]),
    ("optimizer.schedule.warmup", -0.1),
    ("data.batch_size", 32.0),
    ("data.threads", -1),
    ("data.size", "0%"),
    ("data.views.images.image.crop.size", 2**20),
    ("data.views.images.image.crop.scale", [0.5, None]),
    ("evaluators.val.limit", 0),
    ("final_evaluators.zero_shot.source.split", "tests"),
    ("evaluators", None),
    ("augment", None),
    ("augment", 5),
    ("train", {"steps": 5}),
  ],
)
def test_the_message_names_the_field_and_is_short(field, value):
  message = outcome(texts()["quickstart"], field, value)
  assert f"config.{field} is " in message or message.startswith("This config has no ")
  assert "; " in message or "has no" in message
  assert len(message) < 400


def test_a_run_of_too_many_steps_is_an_error():
  epochs = Training(epochs=1e30)
  with pytest.raises(UserError, match="epochs=1e.30 makes a run of [0-9,]* steps.* 2,147,483,647"):
    epochs.total_steps(batch_size=8, examples=1000)
  with pytest.raises(UserError, match="samples=9000000000B makes a run"):
    Training(samples="9000000000B").total_steps(batch_size=1, examples=1)


def test_nothing_is_built_before_all_values_are_checked(monkeypatch):
  """The subset would read its source, which comes first; the wrong objective is found before."""
  config = from_json(texts()["quickstart"])
  monkeypatch.setattr(Subset, "__len__", lambda self: pytest.fail("the data was read"))
  config.objective.temperature = -1.0
  config.data.size = 10
  with pytest.raises(UserError, match="config.objective.temperature is -1.0; Clip expects"):
    build_setup(config)
  with pytest.raises(UserError, match="temperature is -1.0; Clip expects"):
    build(config.objective)


def test_parts_check_their_arguments_in_python_too():
  with pytest.raises(UserError, match="keep_patches is 50; Clip expects a number above 0 and at"):
    Clip(keep_patches=50)


def flag(value):
  """A value as on the command line."""
  return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


@functools.cache
def flags():
  fields = entries(from_json(texts()["quickstart"]))
  return [f"--config.{field}={flag(value)}" for field in fields for value in MORE_VALUES]


def command(argument, capsys):
  """Runs the command in this process: "" if it works, else the message."""
  try:
    assert train.main(["--config=quickstart", argument, "--print"]) == 0
  except UserError as error:
    return str(error)
  finally:
    capsys.readouterr()
  return ""


def test_the_command_line_refuses_the_same_values(capsys):
  for argument in flags()[::9]:
    assert len(command(argument, capsys)) < 1000
  for argument in ("train.log_every=None", "mesh.fsdp=0", "train.epochs=nan", f"seed={HUGE}"):
    field = argument.partition("=")[0]
    assert command(f"--config.{argument}", capsys).startswith(f"config.{field} is ")
  assert len(command(f"--config.seed={'1' * 5000}", capsys)) < 400
  assert "has no 'step'" in command("--config.train.step=5", capsys)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_the_command_line_accepts_no_value_that_raises_another_error(part, capsys):
  for argument in flags()[part::8]:
    assert len(command(argument, capsys)) < 1000


def test_none_on_the_command_line_is_none_for_strings_too(capsys):
  train.main(["--config=quickstart", "--config.train.wandb=None", "--print"])
  assert json.loads(capsys.readouterr().out)["train"]["wandb"] is None
  train.main(["--config=quickstart", "--config.train.wandb=project", "--print"])
  assert json.loads(capsys.readouterr().out)["train"]["wandb"] == "project"


def test_a_wrong_value_ends_the_command_with_code_2_and_one_line():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "clip_jax.train", "--config=quickstart"),
      *("--config.train.log_every=None", "--workdir=/nonexistent/folder"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr == (
    "error: config.train.log_every is None; Training expects an integer of at least 0, as in "
    "--config.train.log_every=50.\n"
  )


@pytest.mark.parametrize("name", ["openclipart", "study"])
def test_the_evaluation_suites_are_checked(name):
  text = to_json(module_of(ROOT / f"configs/evaluations/{name}.py").get_config())
  accepted = 0
  for field in distinct_fields({name: text})[name]:
    for value in MORE_VALUES:
      try:
        check_values(changed(text, field, value), "suite")
        accepted += 1
      except UserError as error:
        assert str(error).startswith("suite.") or "calls" in str(error)
  assert accepted > 0


def test_a_suite_is_checked_before_any_evaluator_is_built(monkeypatch):
  monkeypatch.setattr(OpenClipart, "__len__", lambda self: pytest.fail("an evaluator was built"))
  arguments = ["--model=missing", "--suite=evaluations/openclipart"]
  with pytest.raises(UserError, match="^suite.probe.features is 'no'; LinearProbe expects 'tower'"):
    evaluate.main([*arguments, "--suite.probe.features=no"])


def test_sections_must_be_calls():
  config = from_json(texts()["quickstart"])
  check_sections(config)
  config.train = {"steps": 3}
  with pytest.raises(UserError, match="config.train is .*steps.*; experiment expects a call"):
    check_sections(config)
