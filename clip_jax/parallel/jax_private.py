"""The only place that uses private parts of JAX, with what to do where a version lacks them.

Tried with jax 0.10 to 0.12.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.files import is_full_disk, write_atomically


def coordination_client() -> Any:
  """Client of the key-value store that all processes of a run share.

  Raises:
    UserError: this version of JAX keeps it elsewhere, so several processes cannot check that they
      agree.
  """
  try:
    from jax._src import distributed

    return distributed.global_state.client
  except (ImportError, AttributeError) as error:
    import jax

    raise UserError(
      f"jax {jax.__version__} has no coordination client where clip_jax looks for it ({error}), "
      "and runs of several processes need it. Install jax 0.10 to 0.12, or run a single process."
    ) from error


def detect_cluster(
  scheduler: str | None, timeout: int, *, processes: int | None = None
) -> tuple[str, int, int, Any]:
  """Reads (coordinator, processes, process, local devices) from what a cluster scheduler set.

  Args:
    scheduler: "slurm", or None for whichever JAX finds first.
    timeout: seconds to wait for the coordinator's address.
    processes: number of processes, if it is known.

  Raises:
    UserError: the processes cannot be detected; flags say the same.
  """
  try:
    from jax._src.clusters import ClusterEnv

    detect = ClusterEnv.auto_detect_unset_distributed_params
  except (ImportError, AttributeError) as error:
    import jax

    raise UserError(
      f"jax {jax.__version__} has no cluster detection where clip_jax looks for it ({error}). Set "
      "--coordinator=HOST:PORT --processes=N --process=I on every process."
    ) from error
  try:
    found = detect(None, processes, None, None, scheduler, timeout)
    if None in found[:3]:
      raise RuntimeError("JAX finds no cluster")
  except Exception as error:  # JAX leaves errors of networks and of missing variables as they are.
    raise UserError(
      f"The other processes of the run cannot be detected: {type(error).__name__}: {error}. Set "
      "--coordinator=HOST:PORT --processes=N --process=I on every process."
    ) from error
  return found


def protect_compiled_programs() -> None:
  """Protects JAX's cache of compiled programs from kills, full disks and concurrent runs.

  JAX writes the files of the cache in place. If that is interrupted, a file stays truncated
  forever: each later run warns about it and compiles the program again. So write files
  atomically, and delete those that cannot be read. With a version of JAX that keeps its cache
  elsewhere, or a cache that is limited in size or not in a local folder, JAX's own way of writing
  stays.
  """
  try:
    from jax._src import compilation_cache
    from jax._src.lru_cache import LRUCache

    put, read = LRUCache.put, compilation_cache.get_executable_and_time
  except (ImportError, AttributeError):
    return
  if hasattr(put, "__wrapped__"):
    return  # A command that is called again in the same process.

  @functools.wraps(put)
  def put_whole(cache, key, value):
    file = _cache_file(str(cache.path), key)
    if cache.eviction_enabled or file is None:
      put(cache, key, value)
    elif not file.exists():
      try:
        write_atomically(file, value)
      except OSError as error:  # JAX would warn about each program.
        if not is_full_disk(error):
          raise

  @functools.wraps(read)
  def read_or_delete(cache_key, *args, **kwargs):
    import jax

    try:
      return read(cache_key, *args, **kwargs)
    except Exception:
      if file := _cache_file(jax.config.jax_compilation_cache_dir or "", cache_key):  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
          file.unlink(missing_ok=True)
      return None, None  # As if there were no such file; JAX compiles the program and writes it.

  LRUCache.put = put_whole  # type: ignore[method-assign, assignment]
  compilation_cache.get_executable_and_time = read_or_delete  # type: ignore[assignment]


def _cache_file(folder, key):
  return Path(folder) / f"{key}-cache" if folder and "://" not in folder else None
