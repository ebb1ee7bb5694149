"""Multi-process start-up: finding the other processes, and naming those that are missing."""

from collections.abc import Mapping
import contextlib
import hashlib
import http.client
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import re
import socket
import time
from typing import Any
import urllib.error
import urllib.request

import jax

import clip_jax
from clip_jax.errors import UserError
from clip_jax.parallel.jax_private import detect_cluster
from clip_jax.parallel.peer_watch import Peer, PeerWatch, relay

TIMEOUT = 300  # Seconds to wait for other processes, unless CLIP_JAX_TIMEOUT is set.


def start(
  coordinator: str | None = None, processes: str | None = None, process: str | None = None
) -> contextlib.AbstractContextManager:
  """Joins a multi-process run, if this process belongs to one; call before JAX looks for devices.

  The run is described by the three arguments, or by the environment variables CLIP_JAX_COORDINATOR,
  CLIP_JAX_PROCESSES and CLIP_JAX_PROCESS, or else it is detected from SLURM (`srun`), Google
  Kubernetes Engine or a TPU VM.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: number of processes.
    process: index of this process, from 0.

  Returns:
    A context for the run, which ends this process if another one is lost or fails; see `PeerWatch`.

  Raises:
    UserError: some of the three are missing or invalid, or processes do not answer or run another
      version of the code.
  """
  arguments = {
    name: value if value is not None else os.environ.get(f"CLIP_JAX_{name.upper()}")
    for name, value in (
      ("coordinator", coordinator),
      ("processes", processes),
      ("process", process),
    )
  }
  place = _from_arguments(**arguments) if any(arguments.values()) else _from_environment(os.environ)
  if place is None or place[1] == 1:
    return contextlib.nullcontext()
  coordinator, n, i, devices = place
  seconds = timeout_seconds()
  peers = roll_call(
    coordinator, n, i, {"code": code_version(), "libraries": library_versions()}, timeout=seconds
  )
  watch = PeerWatch(i, peers)
  with contextlib.ExitStack() as stack:
    stack.push(watch)  # Only if joining fails; otherwise the caller enters it.
    address = relay(coordinator) if i else coordinator
    with _no_proxy("127.0.0.1"):
      jax.distributed.initialize(
        address,
        n,
        i,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
        shutdown_timeout_seconds=60,
      )  # Grace period after one fails.
    jax.devices()  # Blocks until every process is here, so call it now, while all are known to run.
    stack.pop_all()
  return watch


def _from_arguments(coordinator, processes, process):
  """Validates the arguments and returns (coordinator, processes, process, None)."""
  n, i = (-1 if (number := _number(x)) is None else number for x in (processes, process))
  host, colon, port = (coordinator or "").rpartition(":")
  if not (host and colon and 0 < (_number(port) or 0) < 2**16 and 0 <= i < n):
    raise UserError(
      f"--coordinator={coordinator} --processes={processes} --process={process} do not identify "
      "one of several processes. Give all three, as in --coordinator=10.0.0.1:8476 "
      "--processes=4 --process=0 (or CLIP_JAX_COORDINATOR, CLIP_JAX_PROCESSES and "
      "CLIP_JAX_PROCESS), with --process from 0 to --processes - 1."
    )
  return coordinator, n, i, None


def _number(text):
  """The value of a text of ASCII digits, or None."""
  return int(text) if re.fullmatch(r"[0-9]{1,9}", text or "") else None


def _from_environment(environment: Mapping[str, str]) -> tuple[str, int, int, Any] | None:
  """Detects (coordinator, processes, process, devices) from the launcher; None if run alone."""
  n = _slurm_tasks(environment)
  if n > 1:
    return detect_cluster("slurm", timeout_seconds(), processes=n)
  # A process that `srun` started alone is not one of the hosts of a TPU.
  if n == 1 or not _has_several_tpu_hosts(environment):
    return None
  with _no_proxy(_metadata_host(environment)):
    return detect_cluster(None, timeout_seconds())


def _slurm_tasks(environment: Mapping[str, str]) -> int:
  """Number of tasks of the step that `srun` started; 0 outside `srun`.

  Raises:
    UserError: some variables are missing or not numbers, so this task cannot find the others.
  """
  if "SLURM_STEP_NODELIST" not in environment:  # Not under srun, even if a job is allocated.
    return 0
  # SLURM_NTASKS is that of the job if the step is interactive.
  tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS"))
  n = _number(tasks)
  if n == 1:
    return n
  numbers = {
    name: environment.get(name)
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
  }
  if not n or None in map(_number, numbers.values()) or _number(numbers["SLURM_PROCID"]) >= n:
    found = {"SLURM_STEP_NUM_TASKS": environment.get("SLURM_STEP_NUM_TASKS"), **numbers}
    raise UserError(
      "The variables that SLURM sets do not identify one task of a step: "
      f"{', '.join(f'{name}={value}' for name, value in found.items())}. Start the command with "
      "srun, pass all SLURM_* variables to containers, set --coordinator, --processes and "
      "--process, or unset SLURM_STEP_NODELIST to train in this process alone."
    )
  return n


def _has_several_tpu_hosts(environment: Mapping[str, str]) -> bool:
  if environment.get("JAX_PLATFORMS") == "cpu" or not _has_tpu():
    return False
  slices = environment.get("MEGASCALE_NUM_SLICES") or "1"
  if not _number(slices):
    raise UserError(f"MEGASCALE_NUM_SLICES={slices} is not a number of slices, such as 2.")
  names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
  if names is None:
    # libtpu and JAX read this variable, too. Colab and Kaggle set it.
    asks = environment.get("TPU_SKIP_MDS_QUERY") is None
    names = _metadata("worker-network-endpoints", environment) if asks else ""
  return "," in names or int(slices) > 1


def _has_tpu() -> bool:
  chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _metadata_host(environment):
  return environment.get("GCE_METADATA_IP", "metadata.google.internal")


def _metadata(name: str, environment: Mapping[str, str], attempts: int = 3) -> str:
  """Reads an attribute of this machine from Google Cloud's metadata server; "" if it has none.

  Raises:
    UserError: the server does not answer, so whether there are other hosts is unknown.
  """
  host = _metadata_host(environment)
  request = urllib.request.Request(
    f"http://{host}/computeMetadata/v1/instance/attributes/{name}",
    headers={"Metadata-Flavor": "Google"},
  )
  # The address is that of this machine's own server, which no proxy reaches.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  for attempt in range(attempts):
    try:
      with opener.open(request, timeout=5) as answer:
        return answer.read().decode()
    except (OSError, http.client.HTTPException, ValueError) as error:
      if isinstance(error, urllib.error.HTTPError) and error.code == 404:
        return ""
      problem = error
      time.sleep(attempt)
  raise UserError(
    f"This machine has TPU chips, but Google Cloud's metadata server at {host} does not say "
    f"whether they belong to a larger TPU: {problem}. Set --coordinator=HOST:PORT --processes=N "
    "--process=I; to train on this machine alone, set --coordinator=localhost:8476 --processes=1 "
    "--process=0."
  )


@contextlib.contextmanager
def _no_proxy(host):
  """Exempts a host from proxies in this context; JAX asks it for the other hosts of a TPU."""
  names = ("no_proxy", "NO_PROXY")
  before = {name: os.environ.get(name) for name in names}
  for name in names:
    os.environ[name] = ",".join(filter(None, (before[name], host)))
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


def timeout_seconds() -> int:
  """Returns how many seconds to wait for other processes.

  Raises:
    UserError: CLIP_JAX_TIMEOUT is not a whole number of seconds.
  """
  text = os.environ.get("CLIP_JAX_TIMEOUT", str(TIMEOUT))
  if not _number(text):
    raise UserError(f"CLIP_JAX_TIMEOUT={text} is not a number of seconds, such as 600.")
  return int(text)


def roll_call(
  coordinator: str, processes: int, process: int, facts: dict[str, str], *, timeout: float
) -> dict[int, Peer]:
  """Waits until all processes have reported in, and checks that they agree.

  `jax.distributed.initialize` would abort a process that waits in vain, with a C++ stack trace that
  does not name the missing ones.

  Args:
    coordinator: HOST:PORT that process 0 listens on; JAX uses it afterwards.
    processes: number of processes.
    process: index of this process.
    facts: values that must be the same on all processes, by name.
    timeout: seconds.

  Returns:
    The connections, which stay open: to all others in process 0, and to process 0 in the others.

  Raises:
    UserError: names the processes that are missing or differ; on every process that reported in.
  """
  me = {
    "process": process,
    "number of processes": processes,
    "host": socket.gethostname(),
    "pid": os.getpid(),
    **facts,
  }
  deadline = time.monotonic() + timeout
  if process:
    problem, peers = _send_report(coordinator, me, deadline, timeout)
  else:
    problem, peers = _collect_reports(coordinator, me, deadline, timeout)
  if problem:
    for peer in peers.values():
      peer.connection.close()
    raise UserError(problem)
  return peers


def _peer(connection, report):
  return Peer(connection, f"process {report['process']} (pid {report['pid']} on {report['host']})")


def _collect_reports(coordinator, me, deadline, timeout):
  """Process 0's side of a roll call: sends the problem, or "" for none, to all.

  Returns:
    The problem, and the connected processes by index.
  """
  port = int(coordinator.rpartition(":")[2])
  both = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(
      ("", port),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
      backlog=me["number of processes"],
    )
  except OSError as e:
    raise UserError(
      f"Process 0 cannot listen on port {port} of --coordinator={coordinator}: "
      f"{e.strerror}. Is another run using it? Choose another port."
    ) from e
  present, connections, n, problem = {0: me}, [], me["number of processes"], ""
  with server:
    while len(present) < n and not problem:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
        connection.settimeout(10)
        one = json.loads(_line(connection))
        number, host = one["process"], one["host"]
        peer = _peer(connection, one)
      except TimeoutError:
        if time.monotonic() > deadline:
          missing = [i for i in range(n) if i not in present]
          problem = (
            f"{list_processes(missing)} did not answer within {timeout:.0f} s; "
            f"{host_names(present)} did. Check the logs of the missing processes, and that their "
            f"hosts can reach {coordinator}."
          )
        continue
      except (OSError, ValueError, TypeError, KeyError):  # Not our process, e.g. a port scan.
        continue
      connections.append((number, peer))
      if number in present:
        problem = (
          f"Two processes claim index {number}, the second one on {host}. Is another run "
          f"using {coordinator}?"
        )
      present[number] = one
      problem = problem or describe_differences(present)
    reply = {"problem": problem, **{name: me[name] for name in ("process", "host", "pid")}}
    for _, peer in connections:
      # A process that died will be noticed soon enough.
      with contextlib.suppress(OSError):
        peer.connection.sendall((json.dumps(reply) + "\n").encode())
  return problem, dict(connections)


def _send_report(coordinator, me, deadline, timeout):
  """The other processes' side of a roll call: reports to process 0.

  Returns:
    The problem that process 0 replies, and the connection to it.
  """
  host, _, port = coordinator.rpartition(":")
  while True:
    try:
      connection = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout + 10)
      connection.sendall((json.dumps(me) + "\n").encode())
      reply = json.loads(_line(connection))
      return reply["problem"], {0: _peer(connection, reply)}
    except (OSError, ValueError) as e:  # Process 0 is not up yet, or is shutting down.
      if time.monotonic() > deadline:
        return (
          f"Process 0 did not answer at {coordinator} within {timeout:.0f} s ({e}). Is it "
          f"running, and can this host ({me['host']}) reach that port?"
        ), {}
      time.sleep(0.2)


def _line(connection, most=2**16):
  """Reads one line from a connection, and nothing after it."""
  line = bytearray()
  while not line.endswith(b"\n"):
    byte = connection.recv(1)
    if not byte or len(line) > most:
      raise ValueError("The connection was closed.")
    line += byte
  return line.decode()


def describe_differences(reports: dict[int, dict[str, Any]]) -> str:
  """Describes the first fact that the processes disagree on; "" if they agree on all."""
  for name in [name for name in reports[min(reports)] if name not in ("host", "process", "pid")]:
    by_value = {}
    for i, one in sorted(reports.items()):
      by_value.setdefault(one.get(name), []).append(i)
    if len(by_value) > 1:
      most = max(by_value, key=lambda value: len(by_value[value]))
      groups = "; ".join(
        f"{host_names({i: reports[i] for i in by_value[value]})}: {value}"
        for value in sorted(by_value, key=lambda value: value == most)
      )
      return f"The processes differ in their {name}. {groups}. It must be the same on all of them."
  return ""


def host_names(reports: dict[int, dict[str, Any]]) -> str:
  """Lists processes and their hosts; the first eight by name."""
  names = [f"process {i} on {one['host']}" for i, one in sorted(reports.items())]
  return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def list_processes(numbers: list[int]) -> str:
  """Formats the indices of processes, as in "Processes 1, 3"."""
  return f"Process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def code_version() -> str:
  """The version of this package and a digest of its source files."""
  root, digest = Path(clip_jax.__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
  return f"{clip_jax.__version__}+{digest.hexdigest()[:12]}"


def library_versions() -> str:
  """The versions of the libraries that training depends on."""
  return ", ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  )
