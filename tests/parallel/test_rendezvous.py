"""Start-up of several processes, with threads in place of processes."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import os
import shutil
import socket
import threading
import time

import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.parallel import rendezvous


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def roll_calls(*calls, timeout=1.0, port=None):
  """Errors raised by concurrent roll calls, "" for none; a call is (processes, process, facts)."""
  coordinator = f"127.0.0.1:{port or free_port()}"

  def one(call):
    try:
      rendezvous.roll_call(coordinator, *call, timeout=timeout)
    except UserError as e:
      return str(e)
    return ""

  with ThreadPoolExecutor(len(calls)) as pool:
    return list(pool.map(one, calls))


def test_processes_that_agree_continue():
  assert roll_calls((3, 2, {"code": "a"}), (3, 0, {"code": "a"}), (3, 1, {"code": "a"})) == [""] * 3


def test_process_0_may_start_last():
  coordinator = f"127.0.0.1:{free_port()}"
  first = threading.Thread(target=lambda: rendezvous.roll_call(coordinator, 2, 1, {}, timeout=9))
  first.start()
  time.sleep(0.3)
  rendezvous.roll_call(coordinator, 2, 0, {}, timeout=9)
  first.join(timeout=5)
  assert not first.is_alive()


def test_other_connections_are_ignored():
  port = free_port()

  def stranger():
    for words in (b"GET / HTTP/1.1\r\n", b"[]\n", b"{}\n"):
      for _ in range(50):
        try:
          with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(words)
          break
        except OSError:
          time.sleep(0.02)

  thread = threading.Thread(target=stranger)
  thread.start()

  def late():
    thread.join()
    return roll_calls((2, 1, {}), timeout=5, port=port)

  with ThreadPoolExecutor(1) as pool:
    other = pool.submit(late)
    rendezvous.roll_call(f"127.0.0.1:{port}", 2, 0, {}, timeout=5)
    assert other.result() == [""]


def test_process_with_different_code_is_named_on_all():
  for one in roll_calls((2, 0, {"code": "a"}), (2, 1, {"code": "b"}), timeout=5):
    assert "The processes differ in their code" in one
  reports = {i: {"host": f"h{i}", "code": code} for i, code in enumerate("aba")}
  assert rendezvous.describe_differences(reports) == (
    "The processes differ in their code. process 1 on h1: b; process 0 on h0, process 2 on h2: a."
    " It must be the same on all of them."
  )
  assert (
    rendezvous.describe_differences(
      {0: {"host": "a", "process": 0, "code": "x"}, 1: {"host": "b", "process": 1, "code": "x"}}
    )
    == ""
  )


def test_missing_processes_are_named_on_all_others():
  reports = roll_calls((4, 0, {}), (4, 2, {}), timeout=0.5)
  host = socket.gethostname()
  for one in reports:
    assert one.startswith(
      f"Processes 1, 3 did not answer within 0 s; process 0 on {host}, "
      f"process 2 on {host} did. Check the logs"
    )


def test_only_the_first_eight_processes_are_listed():
  assert rendezvous.host_names({i: {"host": "h"} for i in range(20)}).endswith("7 on h and 12 more")


def test_missing_process_0_is_reported():
  assert "Process 0 did not answer at 127.0.0.1:" in roll_calls((2, 1, {}), timeout=0.3)[0]


def test_duplicate_index_and_different_count_are_reported():
  reports = roll_calls((3, 0, {}), (3, 1, {}), (3, 1, {}), timeout=2)
  assert sum("Two processes claim index 1" in one for one in reports) >= 2
  reports = roll_calls((3, 0, {}), (2, 1, {}), timeout=2)
  assert all("differ in their number of processes" in one for one in reports)


def test_port_in_use_is_reported():
  with socket.create_server(("", 0)) as taken:
    with pytest.raises(UserError, match=r"cannot listen on port \d+ .*Choose another port"):
      rendezvous.roll_call(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, {}, timeout=1)


@pytest.mark.parametrize(
  "given",
  [
    dict(coordinator="a:1"),
    dict(processes="2", process="0"),
    dict(coordinator="a:1", processes="2", process="2"),
    dict(coordinator="a", processes="2", process="0"),
    dict(coordinator="a:1", processes="two", process="0"),
    dict(coordinator="a:1", processes="²", process="0"),
    dict(coordinator="a:99999", processes="2", process="0"),
    dict(coordinator=":1", processes="2", process="0"),
  ],
)
def test_incomplete_or_invalid_arguments_are_an_error(given):
  with pytest.raises(UserError, match="do not identify one of several processes. Give all three"):
    rendezvous.start(**given)


def test_arguments_may_come_from_the_environment(monkeypatch):
  monkeypatch.setenv("CLIP_JAX_COORDINATOR", "here:12")
  with pytest.raises(UserError, match="--coordinator=here:12 --processes=None"):
    rendezvous.start()


def test_single_process_needs_no_roll_call(monkeypatch):
  monkeypatch.setattr(rendezvous, "roll_call", None)  # Calling it would fail.
  rendezvous.start()
  rendezvous.start("a:1", "1", "0")


SLURM = {
  "SLURM_JOB_ID": "77",
  "SLURM_STEP_NODELIST": "node[003-004]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}


def detected(monkeypatch, **environment):
  """What is detected with these variables set, and no other variables of SLURM."""
  for name in [name for name in os.environ if name.startswith("SLURM_")]:
    monkeypatch.delenv(name)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  return rendezvous._from_environment(os.environ)


def test_slurm_processes_are_detected(monkeypatch):
  coordinator, n, i, devices = detected(monkeypatch, **SLURM)
  assert coordinator.startswith("node003:") and (n, i, devices) == (4, 3, [1])


def test_slurm_counts_the_tasks_of_the_step_and_not_of_the_job(monkeypatch):
  job = SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}
  assert detected(monkeypatch, **job)[1:3] == (4, 3)


@pytest.mark.parametrize(
  "environment",
  [
    {**SLURM, "SLURM_NTASKS": "1"},
    # An interactive step of one task inside a job of four.
    {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    {"SLURM_STEP_NODELIST": "node003", "SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # A job, but not under srun.
  ],
)
def test_one_slurm_task_runs_alone(monkeypatch, environment):
  assert detected(monkeypatch, **environment) is None


@pytest.mark.parametrize(
  "changes",
  [
    *({name: None} for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")),
    *({name: "²"} for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")),
    {"SLURM_STEP_NUM_TASKS": "many"},
    {"SLURM_STEP_NUM_TASKS": "0"},
    {"SLURM_PROCID": "4"},
    {"SLURM_NTASKS": "9" * 5000},
  ],
)
def test_partial_or_invalid_slurm_variables_are_one_message(monkeypatch, changes):
  environment = {name: value for name, value in (SLURM | changes).items() if value is not None}
  with pytest.raises(UserError, match="SLURM_PROCID=.*unset SLURM_STEP_NODELIST"):
    detected(monkeypatch, **environment)


def test_failed_detection_is_one_message(monkeypatch):
  monkeypatch.setattr(rendezvous, "_has_several_tpu_hosts", lambda _: True)
  with pytest.raises(UserError, match="cannot be detected.*--coordinator"):
    detected(monkeypatch)  # JAX finds no TPU here.


@pytest.mark.parametrize(
  "environment, metadata, several",
  [
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, None, True),  # GKE.
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None, False),  # One host.
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, None, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None, False),
    ({}, "u:0:10.0.0.1,u:1:10.0.0.2", True),  # A TPU VM.
    ({}, "10.0.0.1", False),
    ({"TPU_SKIP_MDS_QUERY": "1"}, "must not be read,", False),  # Colab.
  ],
)
def test_several_tpu_hosts_are_detected(monkeypatch, environment, metadata, several):
  monkeypatch.setattr(rendezvous, "_has_tpu", lambda: True)
  monkeypatch.setattr(rendezvous, "_metadata", lambda name, _: metadata)
  assert rendezvous._has_several_tpu_hosts(environment) == several
  monkeypatch.setattr(rendezvous, "_has_tpu", lambda: False)
  assert not rendezvous._has_several_tpu_hosts(environment)


def test_number_of_tpu_slices_must_be_a_number(monkeypatch):
  monkeypatch.setattr(rendezvous, "_has_tpu", lambda: True)
  with pytest.raises(UserError, match="MEGASCALE_NUM_SLICES=two"):
    rendezvous._has_several_tpu_hosts({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "two"})


@contextlib.contextmanager
def metadata_server(*answers):
  """Serves answers at a local address; yields (address, requests received so far)."""
  asked = []
  with socket.create_server(("127.0.0.1", 0)) as server:

    def serve():
      for answer in answers:
        connection, _ = server.accept()
        asked.append(connection.recv(4096).decode())
        connection.sendall(answer)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}", asked
    thread.join()


OK = b"HTTP/1.0 200 OK\r\n\r\na,b"


def test_metadata_server_is_queried_without_a_proxy(monkeypatch):
  for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # Nothing listens there.
  for name in ("no_proxy", "NO_PROXY"):
    monkeypatch.delenv(name, raising=False)
  with metadata_server(OK) as (address, asked):
    assert rendezvous._metadata("workers", {"GCE_METADATA_IP": address}) == "a,b"
  assert "/computeMetadata/v1/instance/attributes/workers" in asked[0]
  assert "Metadata-Flavor: Google" in asked[0]
  requests = pytest.importorskip("requests")  # JAX asks with this library.
  with metadata_server(OK) as (address, asked), rendezvous._no_proxy(address.partition(":")[0]):
    assert requests.get(f"http://{address}/").text == "a,b"
  assert not {"no_proxy", "NO_PROXY"} & set(os.environ)


def test_missing_attribute_is_an_answer_and_a_failed_query_is_repeated():
  with metadata_server(b"HTTP/1.0 404 Not Found\r\n\r\n") as (address, asked):
    assert rendezvous._metadata("workers", {"GCE_METADATA_IP": address}) == ""
  with metadata_server(b"HTTP/1.0 503 Busy\r\n\r\n", b"nonsense", OK) as (address, asked):
    assert rendezvous._metadata("workers", {"GCE_METADATA_IP": address}) == "a,b"
  assert len(asked) == 3


def test_a_machine_with_tpu_chips_does_not_train_alone_because_a_query_failed(monkeypatch):
  monkeypatch.setattr(rendezvous, "_has_tpu", lambda: True)
  monkeypatch.setattr(rendezvous.time, "sleep", lambda _: None)
  environment = {"GCE_METADATA_IP": f"127.0.0.1:{free_port()}"}
  with pytest.raises(UserError, match="metadata server at 127.0.0.1:.*refused.*--processes=1"):
    rendezvous._from_environment(environment)
  answers = [b"HTTP/1.0 403 Forbidden\r\n\r\n"] * 3
  with metadata_server(*answers) as (address, _), pytest.raises(UserError, match="403: Forbidden"):
    rendezvous._from_environment({"GCE_METADATA_IP": address})


def test_timeout_must_be_a_number(monkeypatch):
  monkeypatch.setenv("CLIP_JAX_TIMEOUT", "7")
  assert rendezvous.timeout_seconds() == 7
  monkeypatch.setenv("CLIP_JAX_TIMEOUT", "soon")
  with pytest.raises(UserError, match="CLIP_JAX_TIMEOUT=soon is not a number of seconds"):
    rendezvous.timeout_seconds()


def test_code_version_changes_with_any_source_file_of_the_package(tmp_path, monkeypatch):
  version = rendezvous.code_version()
  assert version.startswith(clip_jax.__version__ + "+")
  assert version == rendezvous.code_version()
  copy = tmp_path / "copy"
  shutil.copytree(
    os.path.dirname(clip_jax.__file__),
    copy,
    ignore=shutil.ignore_patterns("__pycache__", "assets"),
  )
  monkeypatch.setattr(clip_jax, "__file__", str(copy / "__init__.py"))
  assert rendezvous.code_version() == version
  for name in ("losses/chunks.py", "towers/vit.py"):
    before = rendezvous.code_version()
    with (copy / name).open("a") as file:
      file.write("#")
    assert rendezvous.code_version() != before


def test_library_versions_include_jax():
  assert "jax 0." in rendezvous.library_versions()
