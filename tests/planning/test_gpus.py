"""Descriptions of GPUs for the compiler."""

import re

import pytest

from clip_jax.planning.chips import CHIPS
from clip_jax.planning.gpus import GPUS, target_config


def test_every_gpu_among_the_chips_has_figures():
  assert set(GPUS) == {name for name, chip in CHIPS.items() if not chip.torus_dimensions}


@pytest.mark.parametrize("name", GPUS)
def test_multiprocessors_add_up_to_the_float32_peak_of_the_data_sheet(name):
  """Peak float32 FLOP/s are cores x lanes x 2 x clock."""
  sheet = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 75e12}
  gpu = GPUS[name]
  assert gpu.cores * gpu.lanes * 2 * gpu.clock * 1e9 == pytest.approx(sheet[name], rel=0.01)


@pytest.mark.parametrize("name", GPUS)
def test_target_config_contains_the_figures(name):
  text = target_config(GPUS[name], CHIPS[name])
  values = dict(re.findall(r"^  (\w+): ([\d.]+)$", text, re.MULTILINE))
  gpu, chip = GPUS[name], CHIPS[name]
  assert (int(values["core_count"]), float(values["clock_rate_ghz"])) == (gpu.cores, gpu.clock)
  assert int(values["device_memory_size"]) == int(chip.memory)
  assert int(values["memory_bandwidth"]) == chip.bandwidth
  assert int(values["shared_memory_per_block_optin"]) == gpu.shared - 1024
  major, minor = gpu.capability
  assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
  assert f'device_description_str: "{gpu.name}"' in text and 'platform_name: "CUDA"' in text
  assert text.count("{") == text.count("}")
