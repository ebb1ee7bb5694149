"""Tests of running a grid through preemption, failure and kills.

Most use a stand-in for training; one trains for real.
"""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from clip_jax.errors import UserError
from clip_jax.study import grid as grid_lib, run_result, runner, runs_table

ROOT = Path(__file__).parents[2]
GRID = """
import sys
sys.path[:0] = [{tests!r}]
from run_config import get_config
from clip_jax.study.grid import Grid, Run, with_changes
def get_grid(runs="3"):
  factors = dict(data="d", protocol="epochs", arch="A", method="CLIP", aug="none", quality=100.0)
  return Grid([Run(f"run{{i}}", with_changes(get_config("16"), seed=i), factors)
               for i in range(int(runs))], {{"i2t_r10": "retrieval/image_to_text_r10"}})
"""
# Stand-in for training. codes.json lists what each run does at each start: its exit code, or "wait"
# to run until its parent closes the pipe.
STAND_IN = """
import json, pathlib, sys, time
folder, row = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
codes = json.loads((folder.parent.parent / "codes.json").read_text())[row["name"]]
starts = folder / "starts"
n = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (n + 1))
print("this is start", n)
code = codes[min(n, len(codes) - 1)]
if code == "wait":
  sys.stdin.read()
  sys.exit(75)
if code == 0:
  (folder / "row.json").write_text(json.dumps(row))
sys.exit(code)
"""


@pytest.fixture
def grid_file(tmp_path):
  path = tmp_path / "grid.py"
  path.write_text(GRID.format(tests=str(ROOT / "tests")))
  return path


class StandIn(runner.Runner):
  """A runner that starts the stand-in instead of training."""

  def _start(self, run, slot):
    folder = self.out / "runs" / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    row = {
      **dict.fromkeys(runs_table.COLUMNS[:9], ""),
      **run.factors,
      "name": run.name,
      "fingerprint": run.fingerprint,
    }
    with (folder / "log.txt").open("a") as log:
      return subprocess.Popen(
        [sys.executable, "-S", "-c", STAND_IN, str(folder), json.dumps(row)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
      )


def started(grid_file, out, codes, **options):
  """Runs a grid with stand-ins; returns (exit code, number of starts by name of the run)."""
  grid = grid_lib.load(str(grid_file))
  out.mkdir(exist_ok=True)
  (out / "codes.json").write_text(json.dumps(codes))
  (out / "runs").mkdir(exist_ok=True)
  made = StandIn(str(grid_file), grid, out, **{"jobs": 2, **options})
  code = made.run()
  starts = {
    run.name: len(path.read_text())
    if (path := out / "runs" / run.folder / "starts").exists()
    else 0
    for run in grid.runs
  }
  return code, starts


def test_every_run_is_trained_once(grid_file, tmp_path, capsys):
  out = tmp_path / "out"
  codes = {f"run{i}": [0] for i in range(3)}
  assert started(grid_file, out, codes) == (0, {"run0": 1, "run1": 1, "run2": 1})
  assert [row["name"] for row in runs_table.read_rows(out)] == ["run0", "run1", "run2"]
  assert started(grid_file, out, codes)[1] == {"run0": 1, "run1": 1, "run2": 1}, "no run restarts"
  assert "3 runs, 3 of them done" in capsys.readouterr().out


def test_preemptions_restart_without_limit_and_failures_up_to_retries(grid_file, tmp_path, capsys):
  codes = {"run0": [75, 75, 75, 75, 0], "run1": [1, 1, 0], "run2": [1]}
  code, starts = started(grid_file, tmp_path / "out", codes, retries=2)
  assert code == 1 and starts == {"run0": 5, "run1": 3, "run2": 3}
  printed = capsys.readouterr().out
  assert "run2 failed 3 times" in printed and "this is start 2" in printed
  assert "2 of 3 runs are done" in printed


def test_runs_that_lack_an_evaluation_only_are_not_called_failed(grid_file, tmp_path, capsys):
  codes = {"run0": [3, 0], "run1": [3], "run2": [2]}
  code, starts = started(grid_file, tmp_path / "out", codes, retries=1)
  assert code == 1 and starts == {"run0": 2, "run1": 2, "run2": 1}
  printed = capsys.readouterr().out
  assert "trained run0, but an evaluator failed; retrying" in printed
  assert "; failed: run2; trained, but without all evaluations: run1. Rerun" in printed


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 10_000, "\0"])
def test_damaged_row_or_clock_is_one_message(grid_file, tmp_path, content):
  for name in ("row.json", "clock.json"):
    path = tmp_path / "runs" / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged: "):
      if name == "row.json":
        runner.collect_results(tmp_path, grid_lib.load(str(grid_file)))
      else:
        run_result.Clock(path.parent)


def test_user_mistakes_are_not_retried(grid_file, tmp_path):
  codes = {"run0": [2], "run1": [0], "run2": [0]}
  assert started(grid_file, tmp_path / "out", codes) == (1, {"run0": 1, "run1": 1, "run2": 1})


def test_a_machine_trains_its_part_of_the_grid(grid_file, tmp_path):
  codes = {f"run{i}": [0] for i in range(3)}
  assert started(grid_file, tmp_path / "out", codes, part=(1, 2))[1] == {
    "run0": 0,
    "run1": 1,
    "run2": 0,
  }
  assert started(grid_file, tmp_path / "out", codes, part=(0, 2))[1] == {
    "run0": 1,
    "run1": 1,
    "run2": 1,
  }
  assert len(runs_table.read_rows(tmp_path / "out")) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_grid_and_its_runs(grid_file, tmp_path, number):
  out = tmp_path / "out"
  previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
  signal.setitimer(signal.ITIMER_REAL, 2.0)
  codes = {"run0": ["wait"], "run1": ["wait"], "run2": [0]}
  try:
    if number == signal.SIGINT:  # Ctrl-C must not look like a preemption, which is restarted.
      with pytest.raises(KeyboardInterrupt):
        started(grid_file, out, codes)
    else:
      code, starts = started(grid_file, out, codes)
      assert code == runner.PREEMPTED and starts == {"run0": 1, "run1": 1, "run2": 0}
  finally:
    signal.signal(signal.SIGALRM, previous)


def test_rows_of_outdated_configs_are_left_out(grid_file, tmp_path):
  out = tmp_path / "out"
  started(grid_file, out, {f"run{i}": [0] for i in range(3)})
  stale = out / "runs" / "run0-000000000000"
  stale.mkdir()
  (stale / "row.json").write_text(json.dumps({"name": "run0", "fingerprint": "000000000000"}))
  assert len(runner.collect_results(out, grid_lib.load(str(grid_file)))) == 3


def test_concurrent_runs_share_gpus_or_else_cores(monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
  assert runner.divide_machine(1) == [(None, {})]
  assert [env["CUDA_VISIBLE_DEVICES"] for _, env in runner.divide_machine(2)] == ["0,2", "1,3"]
  with pytest.raises(UserError, match="--jobs=5 is more than the 4 GPUs"):
    runner.divide_machine(5)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
  assert [cores for cores, _ in runner.divide_machine(2)] == [{0, 2}, {1, 3}]


def test_numbers_out_of_range_are_rejected(grid_file, tmp_path):
  with pytest.raises(UserError, match="--jobs=0 and --retries=2"):
    runner.Runner("", grid_lib.load(str(grid_file)), tmp_path, jobs=0)


def test_the_clock_includes_a_killed_start(tmp_path):
  (tmp_path / "clock.json").write_text('{"seconds": 100.0, "begun": 1000.0}')
  (tmp_path / "metrics.jsonl").touch()
  os.utime(tmp_path / "metrics.jsonl", (1030, 1030))
  assert 130 <= run_result.Clock(tmp_path).stop() < 140


def test_a_grid_that_changed_while_running_is_rejected(grid_file, tmp_path, monkeypatch):
  monkeypatch.setattr(run_result, "_stop_with_parent", lambda: None)
  with pytest.raises(UserError, match="changed while .* running: the config of run0"):
    run_result.run_one(str(grid_file), "run0", tmp_path, "000000000000")


def test_a_killed_grid_resumes_from_a_checkpoint(grid_file, tmp_path):
  out = tmp_path / "out"
  command = [sys.executable, "-m", "clip_jax.study", "run", f"--grid={grid_file}:1", f"--out={out}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  first = subprocess.Popen(command, cwd=ROOT, env=environment)
  while not any(p.name.isdigit() for p in out.glob("runs/*/checkpoints/*")):
    assert first.poll() is None
    time.sleep(0.02)
  first.kill()
  first.wait()
  done = subprocess.run(
    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300
  )
  assert "1 of 1 runs are done" in done.stdout
  (row,) = runs_table.read_rows(out)
  assert (row["name"], row["dataset_size"], row["samples_seen"], row["seed"]) == (
    "run0",
    "4562",
    "512",
    "0",
  )
  assert float(row["i2t_r10"]) >= 0 and float(row["wall_seconds"]) > 0 and row["fingerprint"]
  assert float(row["train_flops"]) == pytest.approx(6e9 * float(row["forward_gmacs"]) * 512)
  (log,) = out.glob("runs/*/log.txt")
  assert "from step" in log.read_text(), "the run must resume instead of starting over"


def test_the_cost_of_a_run_with_the_users_own_parts_is_counted(grid_file, tmp_path, monkeypatch):
  (tmp_path / "own_tower.py").write_text(
    "from clip_jax.towers.vit import Vit\nclass Own(Vit):\n  'As a Vit.'\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  run = grid_lib.load(f"{grid_file}:1").runs[0]
  own = grid_lib.with_changes(run.config)
  own.model.image.fn = "own_tower:Own"
  assert runner.flops(own) == runner.flops(run.config) > 0
