"""Notices within seconds that another process of the run is lost, and says which one.

By itself, JAX notices a lost process when its heartbeats have been missing for 100 seconds, and
then aborts with frames of C++. Until then, the others wait for it in a collective, which cannot be
interrupted. Here, every process keeps the connection to process 0 that it has from the roll call:
the operating system closes it when a process ends, however that happens. A process that ends by
itself says so first.
"""

import atexit
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Self

from jax.errors import JaxRuntimeError

from clip_jax.cli.formatting import printable
from clip_jax.errors import UserError

LOST = 75  # Exit code when another process is lost: rerun to resume, as after SIGTERM.
_GRACE = 10.0  # Seconds that a process has to fail by itself after another one has failed.
# Seconds between a failed collective and the loss of the process that caused it.
_COLLECTIVE = 3.0
# How the operating system finds out about a machine that is gone without closing its connections.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 14_000}

# Called before a process ends because another one is lost.
cleanups: list[Callable[[], None]] = []


@dataclasses.dataclass(frozen=True)
class Peer:
  """Another process, connected to this one.

  Attributes:
    connection: the connection; nothing else reads from it or writes to it.
    name: such as "process 1 (pid 4711 on host-b)".
  """

  connection: socket.socket
  name: str


class PeerWatch:
  """Ends this process if another one is lost or fails; a context around all that a run does.

  Process 0 is connected to all others, and passes on what happens to one of them.
  """

  def __init__(
    self,
    process: int,
    peers: Mapping[int, Peer],
    *,
    grace: float = _GRACE,
    end: Callable[[str, int], None] | None = None,
  ):
    """Starts to watch, in a thread.

    Args:
      process: index of this process.
      peers: all others by index in process 0, and process 0 in the others.
      grace: seconds to wait for this process to fail by itself after another one has failed.
      end: (message, exit code) -> ends this process.
    """
    self._process, self._peers, self._grace = process, dict(peers), grace
    self._end = end or _end
    self._left: set[int] = set()
    self._leaving, self._sending = threading.Event(), threading.Lock()
    for peer in self._peers.values():
      peer.connection.settimeout(None)
      _keep_alive(peer.connection)
    threading.Thread(target=self._watch, name="peer watch", daemon=True).start()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Tells the others that this process ends, and the error, if there is one."""
    if isinstance(error, JaxRuntimeError):
      time.sleep(_COLLECTIVE)  # If another process is lost, this one ends here, with its name.
    self.leave("" if error is None else _describe(error))
    if error is not None and self._end is _end:
      # Runs before JAX's function, which would wait a minute for others that have failed as well.
      atexit.register(_exit, _exit_code(error))

  def leave(self, problem: str) -> None:
    """Tells the others that this process ends, because of `problem` if it is not ""."""
    self._leaving.set()
    self._send({"left": problem})

  def _watch(self):
    received = dict.fromkeys(self._peers, b"")
    with selectors.DefaultSelector() as selector:
      for i, peer in self._peers.items():
        selector.register(peer.connection, selectors.EVENT_READ, i)
      while selector.get_map():
        for key, _ in selector.select():
          i, connection = key.data, self._peers[key.data].connection
          try:
            data = connection.recv(2**16)
          except OSError:
            data = b""
          *lines, received[i] = (received[i] + data).split(b"\n")
          for line in lines:
            self._on_message(i, json.loads(line))
          if not data:
            selector.unregister(connection)
            if i not in self._left:
              self._on_loss(self._peers[i].name)

  def _on_message(self, i, message):
    if "lost" in message:
      self._on_loss(message["lost"])
    elif "failed" in message:
      self._on_failure(message["failed"])
    else:
      self._left.add(i)
      if message["left"]:
        self._on_failure(f"{self._peers[i].name} failed: {message['left']}")

  def _on_loss(self, name):
    self._pass_on({"lost": name})
    if not self._leaving.is_set():
      self._end(
        f"error: Lost {name}: its connection is closed, so it was killed, crashed, or its machine "
        "is gone; the end of its log may say why. This process cannot continue without it. Restart "
        "all processes; a training run resumes from its last checkpoint.",
        LOST,
      )

  def _on_failure(self, what):
    self._pass_on({"failed": what})

    def end():
      # All processes may have failed alike, and then each of them says so by itself.
      if not self._leaving.wait(self._grace):
        self._end(
          f"error: {what[0].upper()}{what[1:]}\nThis process cannot continue without it.", 1
        )

    threading.Thread(target=end, daemon=True).start()

  def _pass_on(self, message):
    if self._process == 0:
      self._send(message)

  def _send(self, message):
    line = (json.dumps(message) + "\n").encode()
    with self._sending:
      for i, peer in self._peers.items():
        if i not in self._left:
          with contextlib.suppress(OSError):
            peer.connection.sendall(line)


def _describe(error):
  text = " ".join(str(error).split())
  if isinstance(error, KeyboardInterrupt):
    return "it was stopped by Ctrl-C"
  return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _exit_code(error):
  """The exit code of a command after this error, see `clip_jax.cli.command`."""
  return 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def _exit(code):
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(code)


def _end(message, code):
  with contextlib.suppress(OSError):  # Not sys.stderr, whose lock another thread may hold.
    os.write(2, f"\n{printable(message, keep=chr(10))}\n".encode())
  for clean in cleanups:
    with contextlib.suppress(Exception):
      clean()
  # The main thread waits in a collective and cannot be interrupted; functions of atexit would wait
  # for the lost process.
  os._exit(code)


def _keep_alive(connection):
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name) and connection.family != getattr(socket, "AF_UNIX", None):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def relay(address: str) -> str:
  """Starts to forward connections to `address`, HOST:PORT; returns the local address to connect to.

  When the other side is gone, the local connection stays open and silent. JAX aborts a process as
  soon as its connection to the coordinator breaks; this way, `PeerWatch` can end it first.
  """
  host, _, port = address.rpartition(":")
  server = socket.create_server(("127.0.0.1", 0))

  def accept():
    while True:
      local, _ = server.accept()
      try:
        remote = socket.create_connection((host.strip("[]"), int(port)), timeout=60)
      except OSError:
        local.close()  # JAX tries again.
        continue
      remote.settimeout(None)
      for connection in (local, remote):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
      threading.Thread(target=_copy, args=(local, remote, True), daemon=True).start()
      threading.Thread(target=_copy, args=(remote, local, False), daemon=True).start()

  threading.Thread(target=accept, name="relay to the coordinator", daemon=True).start()
  return f"127.0.0.1:{server.getsockname()[1]}"


def _copy(source, target, closes):
  """Forwards bytes until one side is gone; then closes the target, or leaves it open."""
  with contextlib.suppress(OSError):
    while data := source.recv(2**16):
      target.sendall(data)
  if closes:
    with contextlib.suppress(OSError):
      target.shutdown(socket.SHUT_RDWR)
