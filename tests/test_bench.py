"""The `bench` command: the numbers that it prints and writes."""

import json
from pathlib import Path
import sys

import pytest

from clip_jax import bench
from clip_jax.benches import bench_loss, machine, pipeline_speed
from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.towers.convnext import ConvNext
from clip_jax.training.setup import build_setup
from run_config import get_config


def test_bench_data_measures_the_pipeline(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(machine, "SECONDS", 0.3)
  compare = pipeline_speed.compare
  monkeypatch.setattr(
    pipeline_speed,
    "compare",
    lambda seconds: compare(seconds, sizes=((80, 60),), crop=32, pictures=2),
  )
  arguments = ["data", f"--config={Path(__file__).parent}/run_config.py", f"--json={tmp_path}/n"]
  monkeypatch.setattr(sys, "argv", ["bench", *arguments])
  assert bench.main(arguments) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  assert "CPU cores" in numbers["machine"]
  assert numbers["config: time to the first batch at step 10,000,000, s"] < 5
  assert abs(numbers["config: memory growth over 50 batches, MB"]) < 50
  assert numbers["config: images per CPU-second"] > 10
  assert numbers["80x60 Pillow only, images per CPU-second"] > 10
  printed = capsys.readouterr().out
  assert all(name in printed for name in numbers)


def test_bench_step_measures_a_step(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(machine, "SECONDS", 0.3)
  arguments = [
    "step",
    f"--config={Path(__file__).parent}/run_config.py",
    f"--json={tmp_path}/n",
    f"--profile={tmp_path}/trace",
  ]
  monkeypatch.setattr(sys, "argv", ["bench", *arguments])
  assert bench.main(arguments) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  share = numbers["share of the matrix-multiply ceiling"]
  assert 0 < share < 1
  assert numbers["images/s"] == pytest.approx(32 / numbers["step time, s"])
  assert share == pytest.approx(
    numbers["TFLOP per step (6 x forward multiply-adds)"]
    / numbers["step time, s"]
    / numbers["matrix-multiply ceiling, TFLOP/s"]
  )
  assert numbers["temporaries of the step, MB per device"] > 0
  for what in ("dispatch a step", "transfer a batch"):
    assert 0 < numbers[f"host CPU time to {what}, ms"] < 1e3 * numbers["step time, s"]
  shares = {name: n for name, n in numbers.items() if name.startswith("share of device time")}
  assert sum(shares.values()) == pytest.approx(1)
  assert all(
    shares[f"share of device time: {part}"] > 0
    for part in ("image tower", "text tower", "loss", "optimizer")
  )
  assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))
  printed = capsys.readouterr().out
  assert all(name in printed for name in numbers) and "instruction" in printed


def test_ceiling_has_the_dtype_of_the_image_tower():
  config = get_config()
  config.model.image = call(ConvNext, width=8, stages=(1, 1, 1, 1), image_size=32)
  config.objective.keep_patches = 1.0
  assert build_setup(config).dtypes == {"image": "float32", "text": "float32"}
  config.model.image.dtype = "bfloat16"
  assert build_setup(config).dtypes == {"image": "bfloat16", "text": "float32"}


@pytest.mark.slow
def test_bench_loss_compares_chunks_with_dense(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench_loss, "ROWS", (64, 1024))
  monkeypatch.setattr(bench_loss, "CHUNK_SIZE", 64)
  monkeypatch.setattr(bench_loss, "EMBED_DIM", 8)
  assert bench.main(["loss", f"--json={tmp_path}/n"]) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  for name in ("info_nce", "sigmoid_pairs", "nt_xent"):
    assert numbers[f"{name}, 1,024 rows"]["memory ratio, dense / chunked"] > 1.5
    assert numbers[f"{name}, 64 rows"]["dense time, s"] > 0
  assert "nt_xent, 1,024 rows" in capsys.readouterr().out


@pytest.mark.slow
def test_loss_that_would_not_fit_is_compiled_but_not_run(monkeypatch, capsys):
  monkeypatch.setattr(bench_loss, "ROWS", (64,))
  monkeypatch.setattr(bench_loss, "MAX_MEMORY", 1)
  assert bench.main(["loss"]) == 0
  assert bench_loss.bench_loss()["nt_xent, 64 rows"]["time ratio, dense / chunked"] is None
  assert " -" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_checkpoint_measures_a_save(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, "SECONDS", 0.3)
  arguments = [
    "checkpoint",
    f"--config={Path(__file__).parent}/run_config.py",
    f"--json={tmp_path}/n",
  ]
  monkeypatch.setattr(sys, "argv", ["bench", *arguments])
  assert bench.main(arguments) == 0
  numbers = json.loads((tmp_path / "n").read_text())
  assert 0 < numbers["save stall, s"] <= numbers["time until saved, s"]
  assert numbers["save stall, in steps"] == pytest.approx(
    numbers["save stall, s"] / numbers["step time, s"]
  )
  assert numbers["size on disk, MB"] > 0.1 and numbers["restore time, s"] > 0


def test_unknown_bench_is_an_error():
  with pytest.raises(UserError, match="'steps'.*step, loss, data, checkpoint, all"):
    bench.main(["steps"])


def test_profile_of_another_bench_is_an_error(tmp_path):
  with pytest.raises(UserError, match="--profile applies to bench step, not to bench loss"):
    bench.main(["loss", f"--profile={tmp_path}"])
