"""Descriptions of GPUs that are not attached, for XLA to compile for.

Sources: NVIDIA's white papers on A100, H100 and Blackwell, and the table of compute capabilities in
the CUDA programming guide. Clocks, caches and names are as reported by drivers, from OpenXLA's
xla/backends/gpu/target_config/specs.
"""

import dataclasses

from clip_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Gpu:
  """Figures of a GPU that its `Chip` does not include.

  Attributes:
    name: as reported by its driver.
    capability: compute capability, (major, minor).
    cores: number of streaming multiprocessors (SMs).
    lanes: float32 multiply-adds that an SM starts per cycle.
    clock: maximum frequency, in GHz.
    cache: bytes of L2 cache.
    shared: bytes of shared memory per SM; a thread block can use all but 1 KiB of it.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  lanes: int
  clock: float
  cache: int
  shared: int


GPUS = {
  "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10),
  "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
  "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
  "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 1.965, 253 * 2**19, 228 * 2**10),
}


def target_config(gpu: Gpu, chip: Chip) -> str:
  """Returns the compilation target for XLA, a GpuTargetConfigProto in text format.

  Limits on threads, registers and grids are the same for all of these GPUs. The version of cuDNN is
  the oldest that JAX runs with without a warning, so that no program requires a newer one.
  """
  major, minor = gpu.capability
  device: dict[str, float] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_core": gpu.shared,
    "shared_memory_per_block_optin": gpu.shared - 2**10,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "core_count": gpu.cores,
    "fpus_per_core": gpu.lanes,
    "clock_rate_ghz": gpu.clock,
    "memory_bandwidth": int(chip.bandwidth),
    "device_memory_size": int(chip.memory),
    "l2_cache_size": gpu.cache,
  }
  lines = "\n".join(f"  {name}: {value}" for name, value in device.items())
  return (
    f"gpu_device_info {{\n{lines}\n"
    f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
    'platform_name: "CUDA"\n'
    "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
    f'device_description_str: "{gpu.name}"\n'
  )
