"""Compilation for chips that are not attached, and parsing of the compiler's errors."""

import importlib.util
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_jax.planning import compilation
from clip_jax.planning.chips import parse_topology
from clip_jax.planning.compilation import can_compile, gpu_layout, program_too_large

ROOT = Path(__file__).parent.parent.parent
has_libtpu = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(
  not has_libtpu, reason="libtpu is not installed: pip install 'scaling-clip-jax[tpu]'"
)


@pytest.mark.parametrize(
  "message, expected",
  [
    (
      "RESOURCE_EXHAUSTED: ... Used 48.69G of 15.75G hbm. Exceeded hbm capacity by 32.94G.",
      (48.69 * 2**30, 15.75 * 2**30),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(512.00M) exceeds available HBM (0.50G).",
      (512 * 2**20 + 1000, 2**29),
    ),
  ],
)
def test_out_of_memory_error_is_parsed(message, expected):
  assert program_too_large(message, 1000) == tuple(round(n) for n in expected)


@pytest.mark.parametrize(
  "message", ["INTERNAL: Used 48.69G of 15.75G hbm", "RESOURCE_EXHAUSTED: out of vmem"]
)
def test_other_errors_are_not_out_of_memory(message):
  assert program_too_large(message, 0) is None


@pytest.mark.parametrize(
  "installed, tpus, gpus",
  [
    ((), False, False),
    (("libtpu",), True, False),
    (("jax_cuda12_plugin",), False, True),
    (("jax_cuda13_plugin",), False, True),
  ],
)
def test_compilers_are_detected(installed, tpus, gpus, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
  assert can_compile(parse_topology("v5e:2x2")) == tpus
  assert can_compile(parse_topology("h100:8")) == gpus


@pytest.mark.parametrize(
  "text, layout",
  [("h100:8", "1x1x8"), ("h100:16", "1x2x8"), ("a100:3", "1x1x3"), ("h200:20", "1x5x4")],
)
def test_gpus_are_laid_out_in_hosts_of_equal_size(text, layout):
  assert gpu_layout(parse_topology(text)) == layout


@pytest.fixture
def step(monkeypatch):
  """A function that makes the setup of a run for a compiler that reports a given peak."""
  monkeypatch.setattr(compilation, "jit_train_step", lambda setup: setup.step)
  return stand_in


def stand_in(peak, tries):
  """The setup of a run, with a compiler that accepts every step and records its options."""
  memory = SimpleNamespace(
    argument_size_in_bytes=10, temp_size_in_bytes=20, peak_memory_in_bytes=peak
  )
  made = SimpleNamespace(
    memory_analysis=lambda: memory,
    as_text=lambda: "ENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %p = f32[8]{0} parameter(0)\n}\n",
  )
  lowered = SimpleNamespace(compile=lambda options: tries.append(options) or made)
  return SimpleNamespace(
    mesh=jax.make_mesh((1,), ("data",)),
    state=np.zeros(1),
    batch=np.zeros(1),
    step=SimpleNamespace(lower=lambda state, batch: lowered),
  )


def test_gpu_step_fits_if_its_peak_is_within_what_jax_preallocates(step):
  """The GPU compiler does not reject steps that are too large."""
  gpus, options = parse_topology("h100:8"), []
  room = int(gpus.chip.usable_memory)
  fits, large = (compilation.compile_step(step(peak, options), gpus) for peak in (room, room + 1))
  assert isinstance(fits, compilation.Compiled)
  assert (fits.arguments, fits.temporaries, fits.peak) == (10, 20, room)
  assert isinstance(large, compilation.TooLarge)
  assert (large.needed, large.available) == (room + 1, room)
  assert options == 2 * [{"xla_gpu_enable_triton_gemm": False}]


def test_whether_a_tpu_step_fits_is_left_to_the_compiler(step):
  """It does not go by `peak_memory_in_bytes`; and no GPU options are passed."""
  options = []
  made = compilation.compile_step(step(10**15, options), parse_topology("v5e:2x2"))
  assert isinstance(made, compilation.Compiled) and options == [None]


# In a process of its own, because libtpu cannot be unloaded.
_COMPILE = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from clip_jax.errors import UserError
from clip_jax.planning import compilation as compile_lib, estimate
from clip_jax.planning.chips import parse_topology
import sys; sys.path.insert(0, "tests")
from run_config import get_config
config = get_config()
config.mesh.data, config.mesh.fsdp = 2, 2
plan = estimate.estimate(config, parse_topology("v5e:2x2"))
assert plan.fits and plan.mesh == {"data": 2, "fsdp": 2, "tensor": 1}, plan
assert plan.arguments < plan.peak < 50e6 and plan.traffic > 0
assert plan.roofline.memory > 0 and plan.roofline.interconnect > 0
# Losses see all rows, so the embeddings [B, E] of one side are communicated in some form.
assert any(c.kind == "all-gather" for c in plan.collectives)
assert max(c.bytes for c in plan.collectives) < 1e6
assert len(compile_lib.topology_devices(parse_topology("2xv5e:2x2"))) == 8
try:
  compile_lib.topology_devices(parse_topology("v5e:3x5"))
except UserError as e:
  assert "libtpu does not support the slice v5e:3x5" in str(e), e
else:
  raise AssertionError("v5e:3x5 was accepted")
print("COMPILED")
"""


@needs_libtpu
def test_small_step_is_compiled_for_four_tpus():
  done = subprocess.run([sys.executable, "-c", _COMPILE], cwd=ROOT, text=True, capture_output=True)
  assert "COMPILED" in done.stdout, done.stdout + done.stderr[-3000:]


_COMPILE_FOR_GPUS = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from clip_jax.planning import compilation as compile_lib, estimate
from clip_jax.planning.chips import parse_topology
import sys; sys.path.insert(0, "tests")
from run_config import get_config
for name, axes in (("h100:8", (1, 8)), ("a100:16", (8, 2)), ("h200:4", (4, 1)), ("b200:4", (2, 2))):
  config = get_config()
  config.mesh.data, config.mesh.fsdp = axes
  plan = estimate.estimate(config, parse_topology(name))
  assert plan.fits and plan.mesh == {"data": axes[0], "fsdp": axes[1], "tensor": 1}, plan
  assert plan.arguments < plan.peak < 50e6 and plan.traffic > 0
  assert plan.roofline.memory > 0 and plan.roofline.interconnect > 0
  assert plan.compiler_seconds is None and "cuBLAS" in plan.notes[0]
  assert max(len(c.group) for c in plan.collectives) == parse_topology(name).devices
  # The loss sees all rows, so the embeddings of one side are gathered: float32 [B, E].
  assert any(c.kind == "all-gather" and c.bytes >= 32 * 32 * 4 for c in plan.collectives)
  # Gradients are float32, and reduced over all devices; sharded ones over those that shard them.
  parameters = 4 * plan.parameters
  reducing = [c for c in plan.collectives if c.kind in ("all-reduce", "reduce-scatter")]
  reduced = sum(c.bytes * c.times for c in reducing)
  assert 0.9 * parameters < reduced < 2.5 * parameters, (reduced, parameters)
print("COMPILED")
"""


@pytest.mark.skipif(
  not can_compile(parse_topology("h100:8")),
  reason="JAX's CUDA plugin is not installed: pip install 'scaling-clip-jax[cuda]'",
)
def test_small_step_is_compiled_for_gpus_without_a_gpu():
  done = subprocess.run(
    [sys.executable, "-c", _COMPILE_FOR_GPUS], cwd=ROOT, text=True, capture_output=True
  )
  assert "COMPILED" in done.stdout, done.stdout + done.stderr[-3000:]
