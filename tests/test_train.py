"""The train command end to end: complete, resumed, stopped and mistyped; faults/ has the kills."""

import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import pytest

from clip_jax.errors import UserError
from clip_jax.train import main

ROOT = Path(__file__).parent.parent
CONFIG = "tests/run_config.py"


def start(*arguments, **changes):
  """Starts the training command."""
  # The order of sums depends on the number of threads, so use the same number for every run.
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return subprocess.Popen(
    [sys.executable, "-m", "clip_jax.train", *arguments],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=environment,
    **changes,
  )


def train(*arguments, code=0):
  """Runs the training command to its end; returns its output."""
  process = start(*arguments)
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, out + err
  return out + err


def parameters(workdir, step):
  """Returns the arrays of a checkpoint by path, read without this package."""
  tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
  flat, _ = __import__("jax").tree.flatten_with_path(tree)
  return {str(path): np.asarray(x) for path, x in flat}


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """The workdir and the output of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("unbroken")
  return workdir, train(f"--config={CONFIG}", f"--workdir={workdir}")


def test_run_writes_all_documented_files(unbroken):
  workdir, printed = unbroken
  lines = metrics(workdir)
  assert [line["step"] for line in lines] == [1, 10, 20, 20, 30, 30, 30, 30]
  assert {"train/loss", "train/images_per_second", "train/data_wait_fraction"} <= set(lines[0])
  assert {"val/image_to_text_r10", "val/text_to_image_r1"} <= set(lines[3])
  assert "retrieval/image_to_text_r10" in lines[-2] and "zero_shot/top1" in lines[-1]
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["image"]["size"] == "mu" and config["seed"] == 0
  assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [28, 30]
  assert Image.open(workdir / "retrieval.png").width > 200
  assert list((workdir / "tensorboard").iterdir())
  for words in (
    "4,562 records",
    "M parameters",
    "mesh data=1 x fsdp=1 x tensor=1",
    "30/30",
    "image_to_text_r10",
    str(workdir / "metrics.jsonl"),
    str(workdir / "retrieval.png"),
  ):
    assert words in printed
  assert "Warning" not in printed and "Traceback" not in printed


def test_finished_run_shows_its_results(unbroken):
  workdir, _ = unbroken
  before = (workdir / "metrics.jsonl").read_text(), parameters(workdir, 30)
  printed = train(f"--config={CONFIG}", f"--workdir={workdir}")
  assert "done at step 30" in printed and "image_to_text_r10" in printed
  assert (workdir / "metrics.jsonl").read_text() == before[0]
  assert same(parameters(workdir, 30), before[1])


def test_a_second_trainer_is_refused_until_the_first_is_killed(tmp_path):
  run = (f"--config={CONFIG}:100000", f"--workdir={tmp_path}", "--config.train.eval_every=0")
  process = start(*run)
  while not list((tmp_path / "checkpoints").glob("[0-9]")):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  with pytest.raises(UserError, match=f"{tmp_path} is in use: process {process.pid} on"):
    main(list(run))
  assert process.poll() is None
  process.kill()
  process.communicate()
  assert (tmp_path / "trainer.lock").exists()
  again = start(*run)
  while json.loads((tmp_path / "trainer.lock").read_text())["pid"] != again.pid:
    assert again.poll() is None, again.communicate()
    time.sleep(0.05)
  while len(metrics(tmp_path)) < 3:  # Until it can save and stop.
    assert again.poll() is None, again.communicate()
    time.sleep(0.05)
  again.send_signal(signal.SIGTERM)
  out, err = again.communicate(timeout=120)
  assert again.returncode == 75 and "from step" in out, out + err
  assert not (tmp_path / "trainer.lock").exists()


def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before_and_ends_the_same(
  unbroken, tmp_path
):
  workdir = shutil.copytree(unbroken[0], tmp_path / "run")
  path = max((workdir / "checkpoints/30/state").rglob("d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  printed = train(f"--config={CONFIG}", f"--workdir={workdir}")
  assert f"The checkpoint {workdir}/checkpoints/30 is damaged: its " in printed
  assert "Using that of step 28 instead" in printed and "Traceback" not in printed
  assert same(parameters(workdir, 30), parameters(unbroken[0], 30))
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["28", "30", "damaged-30"]


def test_sigterm_saves_and_exits_with_the_preemption_code(unbroken, tmp_path):
  process = start(f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.train.save_every=0")
  while not (tmp_path / "metrics.jsonl").exists() or not metrics(tmp_path):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 75, out + err
  assert "SIGTERM: saved at step" in out
  train(f"--config={CONFIG}", f"--workdir={tmp_path}")
  assert same(parameters(tmp_path, 30), parameters(unbroken[0], 30))


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "No config is given. Set --config=NAME or FILE.py"),
    (
      ("--config=configs/quikstart.py",),
      "no config file configs/quikstart.py. Did you mean configs/quickstart.py?",
    ),
    (("--config=nowhere/x.py",), "Configs that come with the package: benchmark, captioner, clip,"),
    ((f"--config={CONFIG}",), "Set --workdir=DIR"),
    (
      ("--config=configs/study/shapes.py", "--workdir=x"),
      "The file in --config=configs/study/shapes.py does not define get_config(). If it is a grid",
    ),
    (
      ("--config=configs/evaluations/openclipart.py", "--workdir=x"),
      "This config has no data, model, objective, optimizer, train",
    ),
    (
      (f"--config={CONFIG}", "--workdri=x"),
      "no flag --workdri; there are "
      "--workdir, --coordinator, --processes, --process, --print, --explain, "
      "--config. Did you mean --workdir?",
    ),
    (
      (f"--config={CONFIG}", "--workdir=x", "--config.train.step=5"),
      """The config has no 'step'. Did you mean "steps"?""",
    ),
    (
      (f"--config={CONFIG}", "--workdir=x", "--config.trein.steps=5"),
      """The config has no 'trein'. Did you mean "train"?""",
    ),
    ((f"--config={CONFIG}", "--workdir=x", "--config.train.steps=many"), "many"),
    ((f"--config={CONFIG}", "--workdir=x", "left-over"), "'left-over' is not a flag"),
  ],
)
def test_mistyped_command_error_names_the_fix(arguments, message):
  with pytest.raises(UserError, match=re.escape(message)):
    main(list(arguments))


def test_a_mistake_ends_the_command_with_code_2_and_one_message():
  printed = train(f"--config={CONFIG}", "--workdir=x", "--config.train.step=5", code=2)
  assert printed == """error: The config has no 'step'. Did you mean "steps"?\n"""


def test_print_writes_the_config_as_json(capsys):
  assert main([f"--config={CONFIG}", "--print", "--config.objective.chunk_size=8"]) == 0
  assert json.loads(capsys.readouterr().out)["objective"]["chunk_size"] == 8


def test_explain_prints_the_sharding_of_arrays(capsys):
  assert main([f"--config={CONFIG}", "--explain"]) == 0
  printed = capsys.readouterr().out
  assert "params/model/image/stack/blocks/mlp/up/kernel" in printed
  assert "on mesh data=8 x fsdp=1 x tensor=1" in printed and "bytes per device in total" in printed
