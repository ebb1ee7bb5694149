"""Checks that all processes agree before the first step; free of cost for a single process."""

from collections.abc import Callable
import hashlib
import itertools
import json
from pathlib import Path
import secrets
import socket
import time
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.parallel.jax_private import coordination_client
from clip_jax.parallel.rendezvous import (
  describe_differences,
  host_names,
  list_processes,
  timeout_seconds,
)

_FILE_TIMEOUT = 30  # Seconds that a network file system may need to show a file to another host.
_REDUCED_ELEMENTS = 2**20  # Elements of four bytes per device in the timed all-reduce.
_rounds = itertools.count()

T = TypeVar("T")


def on_all_processes(make: Callable[[], T]) -> T:
  """Calls `make` on every process, and returns its result once all of them have succeeded.

  `make` must not use devices.

  Raises:
    UserError: it failed on some process; raised on every process, naming that one and its error.
  """
  if jax.process_count() == 1:
    return make()
  result, problem = None, ""
  try:
    result = make()
  except UserError as e:
    problem = str(e)
  reports = all_gather_objects({"problem": problem})
  failed = [i for i, one in enumerate(reports) if one["problem"]]
  if failed:
    raise UserError(
      f"{list_processes(failed)} ({host_names({i: reports[i] for i in failed})}) "
      f"failed: {reports[failed[0]]['problem']}"
    )
  return result


def check_agreement(
  facts: Callable[[], dict[str, str | dict[str, str]]], workdir: Path
) -> list[str]:
  """Checks that all processes are about to run the same thing, and times an all-reduce.

  Args:
    facts: returns the values that must be the same on all processes, by name; not called if there
      is a single process. For a dict, the entries that differ are reported.
    workdir: the folder that all processes must share.

  Returns:
    Lines to print about the processes; empty for a single process.

  Raises:
    UserError: names the processes that differ from the others and how, or that do not answer.
  """
  n = jax.process_count()
  if n == 1:
    return []
  token, file = secrets.token_hex(8), workdir / ".bring-up"
  if jax.process_index() == 0:
    write_atomically(file, token)
  token = all_gather_objects({"token": token})[0]["token"]
  seen = "shared" if _file_contains(file, token) else "not that of process 0"
  mine = facts()
  reports = all_gather_objects(
    {"workdir": seen, **{name: _digest(one) for name, one in mine.items()}}
  )
  if jax.process_index() == 0:
    file.unlink(missing_ok=True)
  if problem := describe_differences(dict(enumerate(reports))):
    entries = {
      f"{name}.{key}": value
      for name, one in mine.items()
      if isinstance(one, dict) and len({other[name] for other in reports}) > 1
      for key, value in one.items()
    }
    if entries:  # Every process has received the same digests, so all of them take this branch.
      problem = describe_differences(dict(enumerate(all_gather_objects(entries)))) or problem
    raise UserError(problem)
  seconds = all_reduce_seconds()
  clocks = _clock_times()
  return [
    f"processes  {n} on {len({one['host'] for one in reports})} hosts, "
    f"{jax.local_device_count()} devices each; clocks within {np.ptp(clocks):.3f} s; "
    f"all-reduce of {4 * _REDUCED_ELEMENTS >> 20} MB in {1e3 * seconds:.1f} ms"
  ]


def _digest(fact):
  if isinstance(fact, str):
    return fact
  return hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()[:12]


def all_gather_objects(mine: dict[str, Any]) -> list[dict[str, Any]]:
  """Gathers a dict from each process, in process order, with its `host` added.

  A collective through the coordinator's key-value store, which needs no devices.

  Raises:
    UserError: names the processes that did not answer in time.
  """
  n, me = jax.process_count(), jax.process_index()
  mine = {"host": socket.gethostname(), **mine}
  if n == 1:
    return [mine]
  client, seconds = coordination_client(), timeout_seconds()
  number = next(_rounds)
  key = lambda name: f"clip_jax/{number}/{name}"
  client.key_value_set(key(me), json.dumps(mine))
  if me == 0:
    deadline = time.monotonic() + seconds
    reports = [_value(client, key(i), deadline - time.monotonic()) for i in range(n)]
    client.key_value_set(key("all"), json.dumps(reports))
  else:
    # Leaves process 0 enough time to find out which processes are missing.
    answer = _value(client, key("all"), seconds + 10)
    reports = [None] * n if answer is None else answer
  missing = [i for i, one in enumerate(reports) if one is None]
  if len(missing) == n:
    missing = [0]
  if missing:
    raise UserError(
      f"{list_processes(missing)} did not answer within {seconds} s. Check their logs; set "
      "CLIP_JAX_TIMEOUT=SECONDS to wait longer."
    )
  return reports


def _value(client, key, seconds):
  try:
    return json.loads(client.blocking_key_value_get(key, max(int(1e3 * seconds), 1)))
  except jax.errors.JaxRuntimeError:
    return None


def _file_contains(file, token):
  """Whether a file contains the token of process 0, now or after a short wait."""
  for _ in range(_FILE_TIMEOUT * 5):
    try:
      if file.read_text() == token:
        return True
    except OSError:
      pass
    time.sleep(0.2)
  return False


def all_reduce_seconds() -> float:
  """Times an all-reduce of 4 MB per device over all devices; the fastest of five, in seconds."""
  devices = np.array(jax.devices())
  mesh = jax.sharding.Mesh(devices, ("all",))
  split = jax.sharding.NamedSharding(mesh, jax.P("all"))
  x = jax.jit(lambda: jnp.ones((len(devices), _REDUCED_ELEMENTS)), out_shardings=split)()
  total = jax.jit(lambda x: x.sum(0), out_shardings=jax.sharding.NamedSharding(mesh, jax.P()))
  times = []
  for _ in range(6):  # The first call compiles.
    start = time.perf_counter()
    total(x).block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times[1:])


def _clock_times():
  """Returns the clock of each process, in seconds, read right after a barrier."""
  multihost_utils.sync_global_devices("clocks")
  seconds, rest = divmod(time.time(), 1)
  # Two numbers, because 32 bits are too few for the time in seconds with a fraction.
  seconds, rest = multihost_utils.process_allgather((np.int32(seconds), np.float32(rest)))
  return seconds.astype(np.float64) + rest


def data_version(source: Any, records: int = 8) -> str:
  """Returns the number of records of a source and a digest of a few, evenly spaced ones."""
  digest = hashlib.sha256()
  for i in range(0, len(source), max(1, len(source) // records)):
    try:
      record = source[i]
    except Exception as error:  # Readers raise all kinds of errors; corrupt data fails everywhere.
      record = {"error": type(error).__name__}
    for name, value in sorted(record.items()):
      digest.update(f"{name} ".encode())
      digest.update(
        value
        if isinstance(value, bytes)
        else np.asarray(value).tobytes()
        if isinstance(value, np.ndarray)
        else repr(value).encode()
      )
  return f"{len(source)} records, {digest.hexdigest()[:12]}"
