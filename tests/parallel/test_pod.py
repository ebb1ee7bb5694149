"""Training with several local processes: compared with one, killed, stopped, and resized."""

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
import pytest

from clip_jax.training import loop as loop_lib, setup as setup_lib
from clip_jax.training.checkpoint import Checkpoints
from pod_config import get_config
from tiny import largest_difference

ROOT = Path(__file__).parents[2]


class Pod:
  """A running `launch/local_pod.sh`."""

  def __init__(self, n, steps, workdir, *, devices=4, attempts=1):
    environment = {
      **os.environ,
      "PYTHON": sys.executable,
      "PYTHONPATH": str(ROOT / "tests"),
      "XLA_FLAGS": "",
      "DEVICES": str(devices),
      "ATTEMPTS": str(attempts),
      "TMPDIR": str(workdir.parent),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "CLIP_JAX_TIMEOUT": "120",
    }
    self.workdir = workdir
    self.process = subprocess.Popen(
      ["launch/local_pod.sh", str(n), f"tests/pod_config.py:{steps}", f"--workdir={workdir}"],
      cwd=ROOT,
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )

  def pid(self):
    """Process id of process 1."""
    for line in self.process.stdout:
      if found := re.match(r"process 1: pid (\d+)", line):
        return int(found[1])
    raise AssertionError("process 1 did not print its pid")

  def wait_for(self, pattern):
    """Waits until a file in the workdir matches the pattern."""
    while not list(self.workdir.glob(pattern)):
      assert self.process.poll() is None, self.process.stdout.read()
      time.sleep(0.05)

  def ends(self, code=0):
    """Waits for the expected exit code and returns the output."""
    printed, _ = self.process.communicate(timeout=400)
    logs = "".join(path.read_text() for path in self.workdir.parent.glob("local_pod.*/*.log"))
    assert self.process.returncode == code, printed + logs
    return printed


def losses(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_ends_alike(workdir, other, step):
  state = setup_lib.build_setup(get_config(str(step))).state
  ends = [Checkpoints(w / "checkpoints").restore(state, step) for w in (workdir, other)]
  assert largest_difference(ends[0].params, ends[1].params) < 1e-5
  assert losses(workdir).keys() == losses(other).keys() == set(range(1, step + 1))
  np.testing.assert_allclose(*(list(losses(w).values()) for w in (workdir, other)), rtol=1e-5)


def test_two_processes_train_like_one(tmp_path):
  pod = Pod(2, 2, tmp_path / "two")
  loop_lib.run(get_config("2"), tmp_path / "one")
  printed = pod.ends()
  assert "processes  2 on 1 hosts, 4 devices each; clocks within" in printed
  assert "mesh data=4 x fsdp=2" in printed
  assert_ends_alike(tmp_path / "two", tmp_path / "one", 2)
  assert not (tmp_path / "two" / ".bring-up").exists()


@pytest.mark.slow
def test_pod_resumes_after_a_process_is_killed(tmp_path):
  pod = Pod(2, 8, tmp_path / "two", attempts=3)
  other = pod.pid()
  pod.wait_for("checkpoints/2")
  os.kill(other, signal.SIGKILL)
  assert "restarting all 2 processes" in pod.ends()
  loop_lib.run(get_config("8"), tmp_path / "one")
  assert_ends_alike(tmp_path / "two", tmp_path / "one", 8)


@pytest.mark.slow
def test_process_that_lost_another_ends_with_its_name(tmp_path):
  pod = Pod(2, 100_000, tmp_path / "two")
  other = pod.pid()
  pod.wait_for("checkpoints/2")
  begun = time.monotonic()
  os.kill(other, signal.SIGKILL)
  printed, _ = pod.process.communicate(timeout=100)
  assert time.monotonic() - begun < 20
  assert f"error: Lost process 1 (pid {other} on " in printed and "stack trace" not in printed
  assert not (tmp_path / "two" / "trainer.lock").exists()


@pytest.mark.slow
def test_all_processes_of_a_pod_leave_out_a_damaged_checkpoint(tmp_path):
  Pod(2, 4, tmp_path / "two").ends()
  shutil.copytree(tmp_path / "two", tmp_path / "one")
  newest = tmp_path / "two" / "checkpoints" / "4"
  for path in (newest / "state").rglob("d/*"):  # Damage that only one process may come across.
    if path.stat().st_size > 10_000:
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
      break
  printed = Pod(2, 4, tmp_path / "two").ends()
  assert f"The checkpoint {newest} is damaged: " in printed and "from step 2 on" in printed
  assert_ends_alike(tmp_path / "two", tmp_path / "one", 4)
  names = {path.name for path in (tmp_path / "two" / "checkpoints").iterdir()}
  assert names == {"2", "4", "damaged-4"}


@pytest.mark.slow
def test_stopped_pod_resumes_with_one_process_and_with_four(tmp_path):
  pod = Pod(2, 100_000, tmp_path / "two")
  other = pod.pid()
  pod.wait_for("checkpoints/4")
  os.kill(other, signal.SIGTERM)
  printed = pod.ends(75)
  step = int(re.search(r"SIGTERM: saved at step (\d+)", printed)[1])
  assert Checkpoints(tmp_path / "two" / "checkpoints").latest() == step
  assert max(losses(tmp_path / "two")) == step
  for n, devices in ((1, 4), (4, 2)):
    shutil.copytree(tmp_path / "two", tmp_path / str(n))
    printed = Pod(n, step + 2, tmp_path / str(n), devices=devices).ends()
    assert f"from step {step} on" in printed and f"devices    {n * devices} x cpu" in printed
  assert_ends_alike(tmp_path / "1", tmp_path / "4", step + 2)
