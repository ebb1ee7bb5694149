"""Where data that can be recomputed is cached between commands."""

import hashlib
from pathlib import Path
import platform

import platformdirs


def caches() -> Path:
  """Returns the folder for cached files, on Linux $XDG_CACHE_HOME/clip_jax or ~/.cache/clip_jax."""
  return platformdirs.user_cache_path("clip_jax", appauthor=False)


def compiled_programs() -> Path:
  """Returns the folder for compiled programs, which JAX_COMPILATION_CACHE_DIR overrides."""
  # Machines may share a home directory, and a program compiled for one CPU may not run on another.
  try:
    flags = next(
      line
      for line in Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith(("flags", "Features"))
    )
  except (OSError, StopIteration):
    flags = platform.processor()
  return caches() / f"compiled-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
