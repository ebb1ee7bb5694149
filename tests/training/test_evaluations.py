"""Evaluations of a run: they cost no training, fail one by one, and are repeated where missing."""

import json
import os

import numpy as np
from PIL import Image
import pytest

from clip_jax.config import call
from clip_jax.data.sources.folder import Folder
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.evaluators import Evaluator, LabeledSet, Result, Retrieval, ZeroShot
from clip_jax.training import loop as loop_lib, setup as setup_lib
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.metrics import read_metrics
from run_config import get_config


class Counted(Evaluator):
  """Counts its runs in a file, and returns that number; raises if there is a file broken_NAME."""

  def __init__(self, folder: str, name: str):
    self.folder, self.name = folder, name

  def evaluate(self, context):
    with open(f"{self.folder}/{self.name}", "a") as file:
      file.write("x")
    if os.path.exists(f"{self.folder}/broken_{self.name}"):
      raise ZeroDivisionError("no images\nat all")
    return Result({"runs": float(os.path.getsize(f"{self.folder}/{self.name}"))})

  def figure(self, context):
    return Image.new("RGB", (8, 8))


class Killed(Evaluator):
  """Ends the process, as a kill does."""

  def evaluate(self, context):
    raise SystemExit(9)


def small(tmp_path, names=("first", "second"), **train):
  config = get_config("4")
  config.final_evaluators, config.evaluators = {}, {}
  config.train.update({"log_every": 1, "save_every": 0, "eval_every": 0, **train})
  with config.unlocked():
    config.evaluators = {n: call(Counted, folder=str(tmp_path), name=n) for n in names}
  return config


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def runs(tmp_path, name):
  return len((tmp_path / name).read_text())


def test_failing_evaluator_is_named_and_the_others_go_on(tmp_path, capsys):
  (tmp_path / "broken_first").touch()
  config = small(tmp_path, eval_every=2)
  assert loop_lib.run(config, tmp_path / "run") == loop_lib.EVALUATION_FAILED == 3
  printed = capsys.readouterr().out
  assert "Evaluator first failed at step 2: ZeroDivisionError: no images at all (" in printed
  assert "first at step 2, first at step 4" in printed
  failed = [line for line in lines(tmp_path / "run") if "evaluation_errors" in line]
  assert [line["step"] for line in failed] == [2, 4]
  assert "ZeroDivisionError" in failed[0]["evaluation_errors"]["first"]
  found = read_metrics(tmp_path / "run")
  assert found["second/runs"] == ([2, 4], [1.0, 2.0]) and "evaluation_errors" not in found
  assert Checkpoints(tmp_path / "run" / "checkpoints").latest() == 4


def test_rerun_evaluates_only_what_is_missing(tmp_path, capsys):
  (tmp_path / "broken_first").touch()
  config = small(tmp_path)
  assert loop_lib.run(config, tmp_path / "run") == 3
  (tmp_path / "broken_first").unlink()
  assert loop_lib.run(config, tmp_path / "run") == 0
  assert "already done at step 4; evaluating first." in capsys.readouterr().out
  assert (runs(tmp_path, "first"), runs(tmp_path, "second")) == (2, 1)
  assert read_metrics(tmp_path / "run")["first/runs"] == ([4], [2.0])
  before = (tmp_path / "run" / "metrics.jsonl").read_text()
  assert loop_lib.run(config, tmp_path / "run") == 0
  printed = capsys.readouterr().out
  assert "all evaluators have results" in printed and "first" in printed
  assert (runs(tmp_path, "first"), runs(tmp_path, "second")) == (2, 1)
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("eval_every, step", [(3, 3), (0, 4)])
def test_checkpoint_is_saved_before_evaluators_run(tmp_path, eval_every, step):
  config = small(tmp_path, ("first",), eval_every=eval_every)
  config.evaluators["killed"] = call(Killed)
  with pytest.raises(SystemExit):
    loop_lib.run(config, tmp_path / "run")
  assert Checkpoints(tmp_path / "run" / "checkpoints").latest() == step
  del config.evaluators["killed"]
  with config.unlocked():
    config.evaluators["second"] = call(Counted, folder=str(tmp_path), name="second")
  assert loop_lib.run(config, tmp_path / "run") == 0
  steps = sorted({step, 4})
  assert read_metrics(tmp_path / "run")["second/runs"][0] == steps
  assert runs(tmp_path, "first") == len(steps)  # Its result at `step` was kept.


def test_failing_figure_is_reported_and_the_run_is_complete(tmp_path, monkeypatch):
  def broken(self, context):
    raise UserError("nothing to draw")

  monkeypatch.setattr(Counted, "figure", broken)
  config = small(tmp_path, ())
  with config.unlocked():
    config.final_evaluators = {"one": call(Counted, folder=str(tmp_path), name="one")}
  assert loop_lib.run(config, tmp_path / "run") == 3
  monkeypatch.undo()
  assert loop_lib.run(config, tmp_path / "run") == 0  # Draws what is missing.
  assert (tmp_path / "run" / "one.png").exists() and runs(tmp_path, "one") == 1


def classes(folder, counts):
  for name, count in counts.items():
    (folder / name).mkdir(parents=True)
    for i in range(count):
      Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name / f"{i}.png")
  return call(Folder, path=str(folder), captions=None)


def test_evaluators_that_cannot_work_are_found_before_training(tmp_path):
  config = small(tmp_path, ())
  for evaluator, message in (
    (call(ZeroShot, source=classes(tmp_path / "a", {"cat": 2, "dog": 0})), "have no images.*'dog'"),
    (call(Retrieval, source=classes(tmp_path / "b", {"cat": 1, "dog": 1})), "has no 'text'"),
    (
      call(ZeroShot, source=call(OpenClipart), classes=OpenClipart.classes, label="kind"),
      "has no 'kind'",
    ),
  ):
    with config.unlocked():
      config.evaluators = {"broken": evaluator}
    with pytest.raises(UserError, match=message):
      setup_lib.build_setup(config)
  with pytest.raises(UserError, match="has no 'species'"):
    LabeledSet(OpenClipart(), label="species")
