"""The step compiled for chips that are not there; the compiler's refusals read."""

import importlib.util
from pathlib import Path
import subprocess
import sys

import pytest

from clip_jax.planning.chips import topology
from clip_jax.planning.compile import can_compile, too_large

ROOT = Path(__file__).parent.parent.parent
has_libtpu = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(
    not has_libtpu, reason="libtpu is not installed: pip install 'scaling-clip-jax[tpu]'")


@pytest.mark.parametrize("message, expected", [
    ("RESOURCE_EXHAUSTED: ... Used 48.69G of 15.75G hbm. Exceeded hbm capacity by 32.94G.",
     (48.69 * 2**30, 15.75 * 2**30)),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
     "(512.00M) exceeds available HBM (0.50G).", (512 * 2**20 + 1000, 2**29)),
])
def test_a_refusal_says_what_is_needed_and_what_there_is(message, expected):
  assert too_large(message, 1000) == tuple(round(n) for n in expected)


@pytest.mark.parametrize("message", [
    "INTERNAL: Used 48.69G of 15.75G hbm", "RESOURCE_EXHAUSTED: out of vmem"])
def test_a_refusal_for_another_reason_is_none(message):
  assert too_large(message, 0) is None


def test_programs_are_compiled_for_tpus_and_with_libtpu():
  assert can_compile(topology("v5e:2x2")) == has_libtpu
  assert not can_compile(topology("h100:8"))


# In a process of its own, for libtpu stays in one for good.
_COMPILE = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from clip_jax.errors import UserError
from clip_jax.planning import compile as compile_lib, estimate
from clip_jax.planning.chips import topology
import sys; sys.path.insert(0, "tests")
from run_config import get_config
config = get_config()
config.mesh.data, config.mesh.fsdp = 2, 2
plan = estimate.estimate(config, topology("v5e:2x2"))
assert plan.fits and plan.mesh == {"data": 2, "fsdp": 2, "tensor": 1}, plan
assert plan.arguments < plan.peak < 50e6 and plan.traffic > 0
assert plan.roofline.memory > 0 and plan.roofline.interconnect > 0
# Losses see all rows: the embeddings [B, E] of one side travel, in one form or another.
assert any(c.kind == "all-gather" for c in plan.found) and max(c.bytes for c in plan.found) < 1e6
assert len(compile_lib.devices(topology("2xv5e:2x2"))) == 8
try:
  compile_lib.devices(topology("v5e:3x5"))
except UserError as e:
  assert "libtpu knows no slice v5e:3x5" in str(e), e
else:
  raise AssertionError("v5e:3x5 exists")
print("COMPILED")
"""


@needs_libtpu
def test_a_small_step_is_compiled_for_four_chips():
  done = subprocess.run([sys.executable, "-c", _COMPILE], cwd=ROOT, text=True, capture_output=True)
  assert "COMPILED" in done.stdout, done.stdout + done.stderr[-3000:]
