"""`bench data`: the numbers that it promises, and a file of them."""

import json
from pathlib import Path
import sys

from clip_jax import bench
from clip_jax.data import speed


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
