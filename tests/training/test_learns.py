"""The quickstart learns: briefly in a fast test, and to the result in its header in a slow one."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]


def last_line(workdir, *arguments):
  """Runs the quickstart with the command; returns its last line of metrics."""
  subprocess.run(
    [
      sys.executable,
      "-m",
      "clip_jax.train",
      "--config=configs/quickstart.py",
      f"--workdir={workdir}",
      *arguments,
    ],
    cwd=ROOT,
    check=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  # Each evaluator writes a line of its own.
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {name: value for line in lines for name, value in line.items()}


def test_start_of_the_quickstart_is_far_above_chance(tmp_path):
  metrics = last_line(tmp_path, "--config.train.steps=70", "--config.train.eval_every=0")
  chance = 100 * 10 / 459
  assert metrics["retrieval/image_to_text_r10"] > 2 * chance
  assert metrics["retrieval/text_to_image_r10"] > 2 * chance


@pytest.mark.slow
def test_quickstart_reaches_its_documented_recall(tmp_path):
  metrics = last_line(tmp_path)
  assert metrics["retrieval/image_to_text_r10"] >= 16
