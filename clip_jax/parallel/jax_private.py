"""The only place that uses private parts of JAX, with what to do where a version lacks them.

Tried with jax 0.10 to 0.12.
"""

from typing import Any

from clip_jax.errors import UserError


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
