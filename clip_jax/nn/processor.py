"""The dtype in which this machine's processor trains fastest."""

import functools
import os
from pathlib import Path

from clip_jax.errors import UserError

VARIABLE = "CLIP_JAX_CPU_DTYPE"


@functools.cache
def processor_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
  """Returns the dtype that "auto" means on this processor, and the reason in a few words.

  It is bfloat16 with AMX, Intel's matrix unit, whose products were measured to be 3 to 6 times as
  fast as in float32 (docs/speed.md), and float32 otherwise. The environment variable
  CLIP_JAX_CPU_DTYPE overrides the choice. The choice depends on the kind of processor only, not on
  a measurement, so that the same machine always computes the same.

  Args:
    cpuinfo: Linux's description of the processor.

  Raises:
    UserError: the environment variable is neither "float32" nor "bfloat16".
  """
  chosen = os.environ.get(VARIABLE)
  if chosen is not None:
    if chosen not in ("float32", "bfloat16"):
      raise UserError(f"{VARIABLE}={chosen!r}: set it to float32 or bfloat16, or unset it.")
    return chosen, f"{VARIABLE} is set"
  try:
    lines = cpuinfo.read_text().splitlines()
  except OSError:
    lines = []
  flags = next((line.split() for line in lines if line.startswith("flags")), [])
  if "amx_bf16" in flags:
    return "bfloat16", "this processor has AMX"
  return "float32", "this processor has no AMX"
