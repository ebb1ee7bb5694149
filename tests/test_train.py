"""The command, as a person uses it: trained, continued, killed, mistyped."""

import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "tests/run_config.py"


def start(*arguments, **changes):
  """Starts the training command."""
  # One thread's order of sums is not another's: the same number of threads for every run.
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return subprocess.Popen([sys.executable, "-m", "clip_jax.train", *arguments], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                          **changes)


def train(*arguments, code=0):
  """Runs the training command to its end; what it printed."""
  process = start(*arguments)
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, out + err
  return out + err


def parameters(workdir, step):
  """What a checkpoint holds, read without this package."""
  tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
  flat, _ = __import__("jax").tree.flatten_with_path(tree)
  return {str(path): np.asarray(x) for path, x in flat}


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """A run from start to end, and what it printed."""
  workdir = tmp_path_factory.mktemp("unbroken")
  return workdir, train(f"--config={CONFIG}", f"--workdir={workdir}")


def test_a_run_leaves_everything_that_is_promised(unbroken):
  workdir, printed = unbroken
  lines = metrics(workdir)
  assert [line["step"] for line in lines] == [1, 10, 20, 20, 30, 30]
  assert {"train/loss", "train/images_per_second", "train/data_wait"} <= set(lines[0])
  assert {"val/image_to_text_r10", "val/text_to_image_r1"} <= set(lines[3])
  assert {"retrieval/image_to_text_r10", "zero_shot/top1"} <= set(lines[-1])
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["image"]["size"] == "mu" and config["seed"] == 0
  assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [28, 30]
  assert Image.open(workdir / "retrieval.png").width > 200
  assert list((workdir / "tensorboard").iterdir())
  for words in ("4,562 records", "M parameters", "mesh data=1 x fsdp=1 x tensor=1", "30/30",
                "image_to_text_r10", str(workdir / "metrics.jsonl"),
                str(workdir / "retrieval.png")):
    assert words in printed
  assert "Warning" not in printed and "Traceback" not in printed


def test_a_run_that_is_done_says_so_and_evaluates_again(unbroken):
  workdir, _ = unbroken
  before = (workdir / "metrics.jsonl").read_text(), parameters(workdir, 30)
  printed = train(f"--config={CONFIG}", f"--workdir={workdir}")
  assert "done at step 30" in printed and "image_to_text_r10" in printed
  assert (workdir / "metrics.jsonl").read_text() == before[0]
  assert same(parameters(workdir, 30), before[1])


def test_a_killed_run_ends_where_the_unbroken_one_did(unbroken, tmp_path):
  rng = random.Random(0)
  for attempt in range(3):
    process = start(f"--config={CONFIG}", f"--workdir={tmp_path}")
    # From the first checkpoint on, at any moment: in a step, in a save, in an evaluation.
    first = 4 * (attempt + 1)
    while process.poll() is None and not any(
        p.name.isdigit() and int(p.name) >= first for p in (tmp_path / "checkpoints").glob("*")):
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.communicate()
  train(f"--config={CONFIG}", f"--workdir={tmp_path}")
  assert same(parameters(tmp_path, 30), parameters(unbroken[0], 30))
  steady = lambda workdir: [
      {n: v for n, v in line.items() if n not in ("train/images_per_second", "train/data_wait")}
      for line in metrics(workdir) if line["step"] % 10 == 0]
  assert steady(tmp_path) == steady(unbroken[0])


def test_sigterm_saves_and_asks_to_be_started_again(unbroken, tmp_path):
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


@pytest.mark.parametrize("arguments, message", [
    ((), "Which config? Set --config=FILE"),
    (("--config=configs/quikstart.py",), "no config file configs/quikstart.py. Did you mean "
     "configs/quickstart.py?"),
    (("--config=nowhere/x.py",), "In nowhere there are: none"),
    ((f"--config={CONFIG}",), "Set --workdir=DIR"),
    (("--config=configs/study/shapes.py", "--workdir=x"), "The file of --config=configs/study/"
     "shapes.py has no get_config(), by which a config is made. If it is a grid"),
    (("--config=configs/evaluations/openclipart.py", "--workdir=x"), "This config has no data, "
     "model, objective, optimizer, train"),
    ((f"--config={CONFIG}", "--workdri=x"), "no flag --workdri; there are "
     "--workdir, --coordinator, --processes, --process, --print, --explain, "
     "--config. Did you mean --workdir?"),
    ((f"--config={CONFIG}", "--workdir=x", "--config.train.step=5"),
     """error: The config has no 'step'. Did you mean "steps"?"""),
    ((f"--config={CONFIG}", "--workdir=x", "--config.trein.steps=5"),
     """error: The config has no 'trein'. Did you mean "train"?"""),
    ((f"--config={CONFIG}", "--workdir=x", "--config.train.steps=many"), "many"),
    ((f"--config={CONFIG}", "--workdir=x", "left-over"), "'left-over' is not a flag"),
])
def test_a_mistyped_command_is_told_what_was_meant(arguments, message):
  printed = train(*arguments, code=2)
  assert message in printed and "Traceback" not in printed


def test_the_config_can_be_printed():
  printed = train(f"--config={CONFIG}", "--print", "--config.objective.block=8")
  assert json.loads(printed)["objective"]["block"] == 8


def test_where_arrays_lie_can_be_explained():
  printed = train(f"--config={CONFIG}", "--explain")
  assert "params/model/image/stack/blocks/mlp/up/kernel" in printed
  assert "on mesh data=1 x fsdp=1 x tensor=1" in printed and "bytes a device in all" in printed


def test_help_says_how():
  assert "--workdir=DIR" in train("--help")
