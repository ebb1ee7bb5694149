"""Several processes as one: how they find each other, and hear of each other's absence."""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import socket
import time
from typing import Any
import urllib.request

import jax
from jax._src import clusters  # Has no public form; jax 0.10 to 0.12 have it.

import clip_jax
from clip_jax.errors import UserError

TIMEOUT = 300  # Seconds to wait for a process; CLIP_JAX_TIMEOUT is another number of them.


def start(coordinator: str | None = None, processes: str | None = None,
          process: str | None = None) -> None:
  """Makes this process one of several, if it is; before JAX looks for devices.

  It is when the three arguments say so, or the environment variables CLIP_JAX_COORDINATOR,
  CLIP_JAX_PROCESSES and CLIP_JAX_PROCESS, or SLURM (`srun`), Google Kubernetes Engine or a TPU VM.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: how many there are.
    process: which this one is, from 0.

  Raises:
    UserError: some of the three are missing or wrong; processes that do not answer, or that run
      another version of the code.
  """
  given = {name: value if value is not None else os.environ.get(f"CLIP_JAX_{name.upper()}")
           for name, value in (("coordinator", coordinator), ("processes", processes),
                               ("process", process))}
  found = _given(**given) if any(given.values()) else _found(os.environ)
  if found is None or found[1] == 1:
    return
  coordinator, n, i, devices = found
  seconds = patience()
  roll_call(coordinator, n, i, {"code": code_version(), "libraries": libraries()}, timeout=seconds)
  jax.distributed.initialize(coordinator, n, i, local_device_ids=devices,
                             cluster_detection_method="deactivate",
                             initialization_timeout=seconds,
                             shutdown_timeout_seconds=60)  # The others' wait for one that failed.
  jax.devices()  # All wait for all in here: while all are known to be well.


def _given(coordinator, processes, process):
  """(coordinator, processes, process, None), checked."""
  numbers = [int(x) if x and x.isdigit() else -1 for x in (processes, process)]
  if (not coordinator or not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator
      or not 0 <= numbers[1] < numbers[0]):
    raise UserError(
        f"--coordinator={coordinator} --processes={processes} --process={process} do not name one "
        "of several processes. Expected are all three, as in --coordinator=10.0.0.1:8476 "
        "--processes=4 --process=0 (or CLIP_JAX_COORDINATOR, CLIP_JAX_PROCESSES and "
        "CLIP_JAX_PROCESS), with --process from 0 to --processes - 1.")
  return coordinator, *numbers, None


def _found(environment: Mapping[str, str]) -> tuple[str, int, int, Any] | None:
  """The same from what started the process; None when it stands alone."""
  slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
  if not slurm and not _several_tpu_hosts(environment):
    return None
  return clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, "slurm" if slurm else None, patience())


def _several_tpu_hosts(environment: Mapping[str, str]) -> bool:
  if environment.get("JAX_PLATFORMS") == "cpu" or not _has_tpu():
    return False
  names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
  if names is None:
    names = _metadata("worker-network-endpoints", environment)
  return "," in names or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1


def _has_tpu() -> bool:
  chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _metadata(name: str, environment: Mapping[str, str]) -> str:
  """What Google Cloud says of this machine; empty where nobody answers (Colab, Kaggle)."""
  host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(f"http://{host}/computeMetadata/v1/instance/attributes/{name}",
                                   headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode()
  except OSError:
    return ""


def patience() -> int:
  """Seconds to wait for a process.

  Raises:
    UserError: CLIP_JAX_TIMEOUT is not a number of seconds.
  """
  given = os.environ.get("CLIP_JAX_TIMEOUT", str(TIMEOUT))
  if not given.isdigit():
    raise UserError(f"CLIP_JAX_TIMEOUT={given} is not a number of seconds, as 600 is.")
  return int(given)


def roll_call(coordinator: str, processes: int, process: int, facts: dict[str, str], *,
              timeout: float) -> None:
  """Waits until all processes have said that they are there, and that they agree.

  JAX's own start ends a process that waits in vain with a stack of C++ frames, and names nobody.

  Args:
    coordinator: HOST:PORT, where process 0 listens, and soon JAX will.
    processes, process: how many, and which this one is.
    facts: what must be the same everywhere, by name.
    timeout: seconds.

  Raises:
    UserError: which processes are missing, or differ; on all that are there.
  """
  me = {"process": process, "number of processes": processes, "host": socket.gethostname(), **facts}
  deadline = time.monotonic() + timeout
  if process:
    problem = _answer(coordinator, me, deadline, timeout)
  else:
    problem = _listen(coordinator, me, deadline, timeout)
  if problem:
    raise UserError(problem)


def _listen(coordinator, me, deadline, timeout):
  """Process 0's side of a roll call: what is wrong, or nothing; tells all the others."""
  port = int(coordinator.rpartition(":")[2])
  both = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET,
                                  dualstack_ipv6=both, backlog=me["number of processes"])
  except OSError as e:
    raise UserError(f"Process 0 cannot listen at port {port} of --coordinator={coordinator}: "
                    f"{e.strerror}. Choose another port; is another run using this one?") from e
  there, lines, n, problem = {0: me}, [], me["number of processes"], ""
  with server:
    while len(there) < n and not problem:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
        connection.settimeout(10)
        line = connection.makefile("rw")
        one = json.loads(line.readline())
        number, host = one["process"], one["host"]
      except TimeoutError:
        if time.monotonic() > deadline:
          missing = [i for i in range(n) if i not in there]
          problem = (f"{counted(missing)} did not answer within {timeout:.0f} s; there are "
                     f"{names(there)}. Look at the logs of the missing, and whether their hosts "
                     f"reach {coordinator}.")
        continue
      except (OSError, ValueError, TypeError, KeyError):  # Somebody else, as a scan of ports.
        continue
      lines.append(line)
      if number in there:
        problem = (f"Two processes say that they are number {number}, the later one on {host}. Is "
                   f"another run using {coordinator}?")
      there[number] = one
      problem = problem or differences(there)
    for line in lines:
      try:
        line.write(json.dumps(problem) + "\n")
        line.close()
      except OSError:  # It will be missed soon enough.
        pass
  return problem


def _answer(coordinator, me, deadline, timeout):
  """The others' side."""
  host, _, port = coordinator.rpartition(":")
  while True:
    try:
      with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout + 10) as there:
        line = there.makefile("rw")
        line.write(json.dumps(me) + "\n")
        line.flush()
        return json.loads(line.readline())
    except (OSError, ValueError) as e:  # Not up yet, or one that is going down.
      if time.monotonic() > deadline:
        return (f"Process 0 did not answer at {coordinator} within {timeout:.0f} s ({e}). Is it "
                f"running, and may this host ({me['host']}) reach that port?")
      time.sleep(0.2)


def differences(said: dict[int, dict[str, Any]]) -> str:
  """In what processes differ from most of the others; empty if in nothing but their names."""
  for name in [name for name in said[min(said)] if name not in ("host", "process")]:
    by_value = {}
    for i, one in sorted(said.items()):
      by_value.setdefault(one.get(name), []).append(i)
    if len(by_value) > 1:
      most = max(by_value, key=lambda value: len(by_value[value]))
      groups = "; ".join(f"{names({i: said[i] for i in by_value[value]})}: {value}"
                         for value in sorted(by_value, key=lambda value: value == most))
      return f"The processes differ in their {name}. {groups}. It must be the same everywhere."
  return ""


def names(said: dict[int, dict[str, Any]]) -> str:
  """Processes and their hosts, the first eight."""
  names = [f"process {i} on {one['host']}" for i, one in sorted(said.items())]
  return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def counted(numbers: list[int]) -> str:
  """Which processes, in words."""
  return f"Process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def code_version() -> str:
  """The version of this package, and a digest of its files."""
  root, digest = Path(__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
  return f"{clip_jax.__version__}+{digest.hexdigest()[:12]}"


def libraries() -> str:
  """The versions of those that training depends on."""
  return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (
      "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"))
