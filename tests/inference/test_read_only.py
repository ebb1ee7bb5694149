"""Reading a run changes nothing in its folder, even while the run is being trained."""

import logging
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import evaluate, export, score, search
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.inference.loading import load_bundle
from clip_jax.pretrained import run_checkpoint
from clip_jax.training import loop as loop_lib
from run_config import get_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run that is saving its next checkpoint, as far as its folder shows."""
  config, workdir = get_config("2"), tmp_path_factory.mktemp("read") / "run"
  config.evaluators = config.final_evaluators = {}
  loop_lib.run(config, workdir)
  unfinished = workdir / "checkpoints/4.orbax-checkpoint-tmp-17/state"
  unfinished.mkdir(parents=True)
  (unfinished / "part").write_bytes(b"half of an array")
  return workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  for i, name in enumerate(("cat", "dog")):
    (folder / name).mkdir()
    (folder / name / f"{i}.webp").write_bytes(OpenClipart("test")[i]["image"])
  return folder


def snapshot(folder):
  """Everything that a write would change."""
  stats = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
  return {path: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats.items()}


def init_from(workdir, images, out):
  config = get_config("2")
  config.evaluators = config.final_evaluators = {}
  config.train.init_from = str(workdir)
  loop_lib.run(config, out / "next")


READERS = {
  "load": lambda workdir, images, out: clip_jax.load(workdir),
  "evaluate": lambda workdir, images, out: evaluate.main(
    [f"--model={workdir}", f"--classification={images}", f"--out={out}/e.json"]
  ),
  "score": lambda workdir, images, out: score.main(
    [f"--model={workdir}", "--source=openclipart", f"--out={out}/s.npz"]
  ),
  "search": lambda workdir, images, out: search.main(
    [f"--model={workdir}", f"--images={images}", "a red car"]
  ),
  "export": lambda workdir, images, out: export.main(
    [f"--model={workdir}", "--format=stablehlo", f"--out={out}/x"]
  ),
  "init_from": init_from,
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_leaves_the_folder_of_a_run_as_it_is(
  name, workdir, images, tmp_path, caplog, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  loggers = [logging.getLogger(n) for n in (None, "absl", "asyncio", "jax")]
  settings = lambda: [(x.level, x.filters[:], x.handlers[:], x.disabled) for x in loggers]
  before, logged = snapshot(workdir), settings()
  READERS[name](workdir, images, tmp_path)
  assert snapshot(workdir) == before
  assert settings() == logged
  assert not caplog.records


def test_loading_prints_nothing(workdir):
  code = f"import clip_jax; clip_jax.load({str(workdir)!r})"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_loading_a_damaged_run_logs_a_line(workdir, tmp_path, caplog):
  run = tmp_path / "run"
  subprocess.run(["cp", "-r", workdir, run], check=True)
  subprocess.run(["cp", "-r", run / "checkpoints/2", run / "checkpoints/5"], check=True)
  before = snapshot(run)
  clip_jax.load(run)
  (record,) = caplog.records
  assert record.name == "clip_jax" and "5 is damaged: it is a copy of the" in record.getMessage()
  assert snapshot(run) == before


TRAINER = """
import dataclasses, pathlib, sys
import jax, jax.numpy as jnp
from clip_jax import config as config_lib
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.run_lock import RunLock
from clip_jax.training.setup import build_setup, initial_state
from run_config import get_config

workdir, saves, megabytes = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
workdir.mkdir()
config = get_config("2")
config.evaluators = config.final_evaluators = {}
(workdir / "config.json").write_text(config_lib.to_saved(config))
setup = build_setup(config)
with jax.set_mesh(setup.mesh), RunLock(workdir) as lock:
  state = initial_state(setup)
  large = jax.random.normal(jax.random.key(0), (megabytes, 2**18))
  checkpoints = Checkpoints(workdir / "checkpoints", max_checkpoints=1, before_save=lock.check)
  for step in range(1, saves + 1):
    params = jax.tree.map(lambda x: jnp.full_like(x, step / 64), state.params)
    checkpoints.save(step, dataclasses.replace(state, params=params, opt_state=large), config)
    checkpoints.check()
  checkpoints.close()
"""


def read_while_training(tmp_path, saves, megabytes):
  """Loads a run again and again while it saves; returns the steps that were loaded."""
  workdir = tmp_path / "run"
  with subprocess.Popen(
    [sys.executable, "-c", TRAINER, str(workdir), str(saves), str(megabytes)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as trainer:
    loaded = []
    while trainer.poll() is None:
      if not run_checkpoint.steps_in(workdir / "checkpoints"):
        continue
      params = load_bundle(workdir).params
      # All arrays are of one step.
      values = {float(x) for leaf in jax.tree.leaves(params) for x in np.unique(leaf)}
      assert len(values) == 1
      loaded.append(round(64 * values.pop()))
    assert trainer.returncode == 0, trainer.stdout.read()
  assert run_checkpoint.steps_in(workdir / "checkpoints") == [saves]
  assert loaded == sorted(loaded)
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(saves)]
  return loaded


def test_loading_while_a_run_trains_costs_it_no_save(tmp_path, caplog):
  loaded = read_while_training(tmp_path, saves=10, megabytes=8)
  assert len(loaded) > 3 and not caplog.records


@pytest.mark.slow
def test_loading_while_a_large_run_saves_fifty_times_costs_it_no_save(tmp_path, caplog):
  loaded = read_while_training(tmp_path, saves=50, megabytes=400)
  assert len(loaded) > 50 and not caplog.records
