"""`bench`: the numbers that it promises, and a file of them."""

import json
from pathlib import Path
import sys

import pytest

from clip_jax import bench
from clip_jax.data import speed
from clip_jax.errors import UserError


def test_bench_data_says_what_the_pipeline_costs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench, "SECONDS", 0.3)
  compare = speed.compare
  monkeypatch.setattr(speed, "compare", lambda seconds: compare(
      seconds, sizes=((80, 60),), crop=32, pictures=2))
  arguments = ["data", f"--config={Path(__file__).parent}/run_config.py", f"--json={tmp_path}/n"]
  monkeypatch.setattr(sys, "argv", ["bench", *arguments])
  assert bench.main(arguments) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  assert "CPU cores" in numbers["machine"]
  assert numbers["config: seconds to the first batch at step 10,000,000"] < 5
  assert abs(numbers["config: growth of the memory over 50 batches, MB"]) < 50
  assert numbers["config: images per CPU-second"] > 10
  assert numbers["80x60 all Pillow, images per CPU-second"] > 10
  printed = capsys.readouterr().out
  assert all(name in printed for name in numbers)


def test_bench_step_says_what_a_step_costs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench, "SECONDS", 0.3)
  arguments = ["step", f"--config={Path(__file__).parent}/run_config.py", f"--json={tmp_path}/n"]
  monkeypatch.setattr(sys, "argv", ["bench", *arguments])
  assert bench.main(arguments) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  share = numbers["share of the matrix-multiply ceiling"]
  assert 0 < share < 1
  assert numbers["images/s"] == pytest.approx(32 / numbers["seconds a step"])
  assert share == pytest.approx(
      numbers["TFLOP a step (6 x forward multiply-adds)"] / numbers["seconds a step"]
      / numbers["ceiling, TFLOP/s"])
  assert numbers["temporaries of the step, MB a device"] > 0
  printed = capsys.readouterr().out
  assert all(name in printed for name in numbers)


def test_what_cannot_be_measured_is_an_error():
  with pytest.raises(UserError, match="'steps' is none of step, data"):
    bench.main(["steps"])
