"""What the compiler is told of GPUs."""

import re

import pytest

from clip_jax.planning.chips import CHIPS
from clip_jax.planning.gpus import GPUS, target_config


def test_there_are_facts_of_every_gpu_that_can_be_planned_for():
  assert set(GPUS) == {name for name, chip in CHIPS.items() if not chip.dimensions}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpus_multiprocessors_make_up_what_its_data_sheet_promises(name):
  """FLOP/s in float32, which the sheets say too: cores x lanes x 2 x clock."""
  sheet = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 75e12}
  gpu = GPUS[name]
  assert gpu.cores * gpu.lanes * 2 * gpu.clock * 1e9 == pytest.approx(sheet[name], rel=0.01)


@pytest.mark.parametrize("name", GPUS)
def test_the_compiler_is_told_the_facts_in_its_own_words(name):
  text = target_config(GPUS[name], CHIPS[name])
  told = dict(re.findall(r"^  (\w+): ([\d.]+)$", text, re.MULTILINE))
  gpu, chip = GPUS[name], CHIPS[name]
  assert (int(told["core_count"]), float(told["clock_rate_ghz"])) == (gpu.cores, gpu.clock)
  assert int(told["device_memory_size"]) == int(chip.memory)
  assert int(told["memory_bandwidth"]) == chip.bandwidth
  assert int(told["shared_memory_per_block_optin"]) == gpu.shared - 1024
  major, minor = gpu.capability
  assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
  assert f'device_description_str: "{gpu.name}"' in text and 'platform_name: "CUDA"' in text
  assert text.count("{") == text.count("}")
