"""What the processes of a run do when one of them is lost or fails, with threads as processes."""

import contextlib
import queue
import socket
import time

from jax.errors import JaxRuntimeError
import pytest

from clip_jax.errors import UserError
from clip_jax.parallel import peer_watch
from clip_jax.parallel.peer_watch import Peer, PeerWatch, relay

TIMEOUT = 10.0


@pytest.fixture
def watches():
  """Makes n watches that are connected as the processes of a run; `ended` has how they end."""
  connections = []

  def make(n, grace=0.1):
    pairs = {i: socket.socketpair() for i in range(1, n)}
    connections.extend(connection for pair in pairs.values() for connection in pair)
    ended = [queue.Queue() for _ in range(n)]
    end = lambda i: lambda message, code: ended[i].put((message, code))
    made = [
      PeerWatch(
        0,
        {i: Peer(a, f"process {i} of it") for i, (a, _) in pairs.items()},
        grace=grace,
        end=end(0),
      )
    ]
    made += [
      PeerWatch(i, {0: Peer(b, "process 0 of it")}, grace=grace, end=end(i))
      for i, (_, b) in pairs.items()
    ]
    return made, ended, pairs

  yield make
  for connection in connections:
    connection.close()


def closed(connection):
  """Closes a connection as the operating system does for a process that is killed."""
  connection.shutdown(socket.SHUT_RDWR)


def test_lost_process_is_named_by_all_others(watches):
  _, ended, pairs = watches(3)
  closed(pairs[2][1])
  for i in (0, 1):
    message, code = ended[i].get(timeout=TIMEOUT)
    assert code == 75 and message.startswith("error: Lost process 2 of it: ")


def test_loss_of_process_0_is_named(watches):
  _, ended, pairs = watches(2)
  closed(pairs[1][0])
  assert ended[1].get(timeout=TIMEOUT)[0].startswith("error: Lost process 0 of it: ")


def test_process_that_is_done_may_go(watches):
  made, ended, pairs = watches(3)
  with made[1]:
    pass
  closed(pairs[1][1])
  with made[0]:
    pass
  closed(pairs[2][0])
  time.sleep(0.3)
  assert all(one.empty() for one in ended)


def test_failure_of_one_process_ends_the_others_with_its_message(watches):
  made, ended, _ = watches(3)
  with contextlib.suppress(UserError), made[1]:
    raise UserError("the disk\nis full")
  for i in (0, 2):
    message, code = ended[i].get(timeout=TIMEOUT)
    assert code == 1 and message.startswith("error: Process 1 of it failed: the disk is full\n")


def test_processes_that_fail_alike_end_by_themselves(watches):
  made, ended, _ = watches(2, grace=1.0)
  for watch in made:
    with contextlib.suppress(UserError), watch:
      raise UserError("a mistake in the config")
  time.sleep(1.3)
  assert all(one.empty() for one in ended)


def test_failed_collective_waits_for_the_reason(watches, monkeypatch):
  monkeypatch.setattr(peer_watch, "_COLLECTIVE", 0.5)
  made, ended, pairs = watches(2)
  closed(pairs[1][1])
  with contextlib.suppress(JaxRuntimeError), made[0]:
    raise JaxRuntimeError("Connection closed by peer")
  assert "Lost process 1" in ended[0].get(timeout=0.1)[0]


def test_relay_keeps_the_connection_when_the_other_side_is_gone():
  with socket.create_server(("127.0.0.1", 0)) as server:
    host, port = relay(f"127.0.0.1:{server.getsockname()[1]}").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as here:
      there, _ = server.accept()
      here.sendall(b"question")
      assert there.recv(100) == b"question"
      there.sendall(b"answer")
      assert here.recv(100) == b"answer"
      closed(there)
      here.settimeout(0.3)
      with pytest.raises(TimeoutError):
        here.recv(1)
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as here:
      there, _ = server.accept()
      closed(here)
      there.settimeout(TIMEOUT)
      assert there.recv(1) == b""
  with socket.create_connection((host, int(port)), timeout=TIMEOUT) as here:
    assert here.recv(1) == b""  # Nobody listens there yet: try again.
