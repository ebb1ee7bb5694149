"""Whether processes agree, before the first step; one alone agrees with itself at no cost."""

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
from jax._src import distributed as jax_distributed  # Has no public form; jax 0.10 to 0.12 have it.
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from clip_jax.distributed import counted, differences, names, patience
from clip_jax.errors import UserError

_SHARED = 30    # Seconds that a network file system may take to show one host's file to another.
_WORDS = 2**20  # Of four bytes, on each device, in the all-reduce that is timed.
_rounds = itertools.count()

T = TypeVar("T")


def together(make: Callable[[], T]) -> T:
  """What `make` returns, once it has returned on every process; no device may be asked for it.

  Raises:
    UserError: it failed on some process; says which one and how, on every process.
  """
  if jax.process_count() == 1:
    return make()
  made, problem = None, ""
  try:
    made = make()
  except UserError as e:
    problem = str(e)
  said = exchange({"problem": problem})
  failed = [i for i, one in enumerate(said) if one["problem"]]
  if failed:
    raise UserError(f"{counted(failed)} ({names({i: said[i] for i in failed})}) "
                    f"failed: {said[failed[0]]['problem']}")
  return made


def check(facts: Callable[[], dict[str, str | dict[str, str]]], workdir: Path) -> list[str]:
  """Makes sure that all processes are about to do the same, and times an all-reduce.

  Args:
    facts: returns what must be the same everywhere, by name; not asked of one process. Where it is
      a dict, what differs in it is named.
    workdir: the folder that all must share.

  Returns:
    What a person may want to know; nothing of one process.

  Raises:
    UserError: which process differs from the others and how, or does not answer.
  """
  n = jax.process_count()
  if n == 1:
    return []
  token, file = secrets.token_hex(8), workdir / ".bring-up"
  if jax.process_index() == 0:
    file.write_text(token)
  token = exchange({"token": token})[0]["token"]
  seen = "shared" if _shows(file, token) else "not that of process 0"
  mine = facts()
  said = exchange({"workdir": seen, **{name: _digest(one) for name, one in mine.items()}})
  if jax.process_index() == 0:
    file.unlink(missing_ok=True)
  if problem := differences(dict(enumerate(said))):
    entries = {f"{name}.{key}": value for name, one in mine.items() if isinstance(one, dict)
               and len({other[name] for other in said}) > 1 for key, value in one.items()}
    if entries:  # All have heard the same, so all say more.
      problem = differences(dict(enumerate(exchange(entries)))) or problem
    raise UserError(problem)
  seconds = all_reduce_seconds()
  clocks = _clocks()
  return [f"processes  {n} on {len({one['host'] for one in said})} hosts, "
          f"{jax.local_device_count()} devices each; clocks within {np.ptp(clocks):.3f} s; "
          f"all-reduce of {4 * _WORDS >> 20} MB in {1e3 * seconds:.1f} ms"]


def _digest(fact):
  if isinstance(fact, str):
    return fact
  return hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()[:12]


def exchange(mine: dict[str, Any]) -> list[dict[str, Any]]:
  """What every process says, in their order, with its `host`; a collective without a device.

  Raises:
    UserError: which processes did not answer in time.
  """
  n, me = jax.process_count(), jax.process_index()
  mine = {"host": socket.gethostname(), **mine}
  if n == 1:
    return [mine]
  client, seconds = jax_distributed.global_state.client, patience()
  turn = next(_rounds)
  key = lambda name: f"clip_jax/{turn}/{name}"
  client.key_value_set(key(me), json.dumps(mine))
  if me == 0:
    deadline = time.monotonic() + seconds
    said = [_value(client, key(i), deadline - time.monotonic()) for i in range(n)]
    client.key_value_set(key("all"), json.dumps(said))
  else:
    # Time for process 0 to find out who is missing.
    answer = _value(client, key("all"), seconds + 10)
    said = [None] * n if answer is None else answer
  missing = [i for i, one in enumerate(said) if one is None]
  if len(missing) == n:
    missing = [0]
  if missing:
    raise UserError(f"{counted(missing)} did not answer within {seconds} s. Look at their logs; "
                    "CLIP_JAX_TIMEOUT=SECONDS waits longer.")
  return said


def silent(seconds: float = 10) -> list[int]:
  """The processes that do not say, within some seconds, that a step has failed for them too.

  When one is lost, a collective fails on all others, and the error names nobody. When one fails by
  itself, it is the others that are silent, for they wait for it.
  """
  if jax.process_count() == 1:
    return []
  client, me = jax_distributed.global_state.client, jax.process_index()
  key, deadline = "clip_jax/failed/{}".format, time.monotonic() + seconds
  try:
    client.key_value_set(key(me), "true")
  except jax.errors.JaxRuntimeError:  # The table is process 0's.
    return [0]
  return [i for i in range(jax.process_count())
          if i != me and _value(client, key(i), deadline - time.monotonic()) is None]


def _value(client, key, seconds):
  try:
    return json.loads(client.blocking_key_value_get(key, max(int(1e3 * seconds), 1)))
  except jax.errors.JaxRuntimeError:
    return None


def _shows(file, token):
  """Whether a file has, or gets soon, what process 0 wrote into it."""
  for _ in range(_SHARED * 5):
    try:
      if file.read_text() == token:
        return True
    except OSError:
      pass
    time.sleep(0.2)
  return False


def all_reduce_seconds() -> float:
  """The time of the fastest of five sums of 4 MB a device over all devices."""
  devices = np.array(jax.devices())
  mesh = jax.sharding.Mesh(devices, ("all",))
  split = jax.sharding.NamedSharding(mesh, jax.P("all"))
  x = jax.jit(lambda: jnp.ones((len(devices), _WORDS)), out_shardings=split)()
  total = jax.jit(lambda x: x.sum(0), out_shardings=jax.sharding.NamedSharding(mesh, jax.P()))
  times = []
  for _ in range(6):  # The first one compiles.
    begun = time.perf_counter()
    total(x).block_until_ready()
    times.append(time.perf_counter() - begun)
  return min(times[1:])


def _clocks():
  """Seconds that each process's clock shows, after they have waited for each other."""
  multihost_utils.sync_global_devices("clocks")
  seconds, rest = divmod(time.time(), 1)
  # As two numbers, for one of 32 bits holds too few digits.
  seconds, rest = multihost_utils.process_allgather((np.int32(seconds), np.float32(rest)))
  return seconds.astype(np.float64) + rest


def data_version(source: Any, records: int = 8) -> str:
  """How many records a source has, and a digest of some of them, spread over it."""
  digest = hashlib.sha256()
  for i in range(0, len(source), max(1, len(source) // records)):
    try:
      record = source[i]
    except Exception as error:  # Whatever a reader throws at broken bytes; the same everywhere.
      record = {"error": type(error).__name__}
    for name, value in sorted(record.items()):
      digest.update(f"{name} ".encode())
      digest.update(value if isinstance(value, bytes) else np.asarray(value).tobytes()
                    if isinstance(value, np.ndarray) else repr(value).encode())
  return f"{len(source)} records, {digest.hexdigest()[:12]}"
