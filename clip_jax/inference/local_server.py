"""HTTP server for a page on this machine: checks who asks, and bounds time, threads and memory.

Any web page that the user has open can send requests to this machine. So the server answers only
requests that name it in `Host`, which a page under an attacker's domain cannot (DNS rebinding), and
none that a browser sends on behalf of another origin.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import re
import socket
import sys
import threading
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

from clip_jax.errors import UserError

NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Cross-Origin-Resource-Policy": "same-origin",
  # The page's own files only: markup in a file name could not run a script even if it got through.
  "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
  "form-action 'self'; frame-ancestors 'none'",
  "Cache-Control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one server may use.

  Attributes:
    threads: requests handled at a time; further ones wait.
    uploads: request bodies in memory at a time.
    wait_seconds: how long a request waits for a thread or an upload slot before it gets a 503.
    header_seconds, body_seconds: time to receive the header and the body of a request.
    send_seconds: time for the client to receive the answer.
  """

  threads: int = 16
  uploads: int = 4
  wait_seconds: float = 5.0
  header_seconds: float = 10.0
  body_seconds: float = 60.0
  send_seconds: float = 30.0


class Refused(Exception):
  """Ends a request with an HTTP status and a message for the user."""

  def __init__(self, status: HTTPStatus, message: str):
    super().__init__(message)
    self.status, self.message = status, message


class LocalServer(ThreadingHTTPServer):
  """Serves `handler` on the loopback interface."""

  daemon_threads = True

  def __init__(
    self,
    port: int,
    handler: type["LocalHandler"],
    *,
    hosts: Iterable[str] = (),
    limits: Limits | None = None,
  ):
    """Binds the port.

    Args:
      port: TCP port; 0 for any free port.
      handler: subclass of `LocalHandler`.
      hosts: further values of the `Host` header to accept, such as "localhost:9000" for a tunnel.
      limits: see `Limits`.

    Raises:
      UserError: the port is not available.
    """
    self.limits = limits or Limits()
    self._slots = threading.BoundedSemaphore(self.limits.threads)
    self.uploads = threading.BoundedSemaphore(self.limits.uploads)
    try:
      super().__init__(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as e:
      raise UserError(
        f"Port {port} is not available: {getattr(e, 'strerror', None) or e}. Set --port to another "
        "port, or to 0 for any free port."
      ) from e
    own = {f"{name}:{self.server_port}" for name in NAMES}
    self.hosts = own | {host.lower() for host in hosts} | (set(NAMES) if port == 80 else set())

  def process_request(self, request: Any, client_address: Any) -> None:
    """Starts a thread for the request as soon as there is one, or sends a 503."""
    if not self._slots.acquire(timeout=self.limits.wait_seconds):
      with contextlib.suppress(OSError):
        request.settimeout(1)
        request.sendall(b"HTTP/1.0 503 Too many requests at a time\r\nContent-Length: 0\r\n\r\n")
      self.shutdown_request(request)
      return
    try:
      super().process_request(request, client_address)
    except BaseException:
      self._slots.release()
      raise

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Handles the request and frees its slot."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._slots.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Prints a traceback, unless the client has gone or is too slow."""
    if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
      super().handle_error(request, client_address)


class LocalHandler(BaseHTTPRequestHandler):
  """Checks a request, then calls `get` or `post`, which may raise `Refused`."""

  server: LocalServer

  def get(self, url: SplitResult) -> None:
    """Answers a GET request."""
    raise Refused(HTTPStatus.NOT_FOUND, f"There is no {url.path}.")

  def post(self, url: SplitResult) -> None:
    """Answers a POST request."""
    raise Refused(HTTPStatus.NOT_FOUND, f"There is no {url.path}.")

  def do_GET(self) -> None:
    """Answers a GET request."""
    self._answer(self.get)

  def do_POST(self) -> None:
    """Answers a POST request."""
    self._answer(self.post)

  @contextlib.contextmanager
  def body(self, most: int) -> Iterator[bytes]:
    """Yields the request's body, of 1 to `most` bytes, while holding an upload slot.

    Raises:
      Refused: there is no valid length, the body is too large, truncated or too slow, or there are
        too many uploads.
    """
    length = self._length(most)
    if not self.server.uploads.acquire(timeout=self.server.limits.wait_seconds):
      raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Too many uploads at a time. Try again.")
    try:
      self._incoming.ends = time.monotonic() + self.server.limits.body_seconds
      try:
        content = self.rfile.read(length)
      except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "The upload took too long.") from None
      if len(content) < length:
        raise Refused(HTTPStatus.BAD_REQUEST, f"Received {len(content)} of {length} bytes.")
      yield content
    finally:
      self.server.uploads.release()

  def send(self, content: bytes, kind: str) -> None:
    """Sends an answer of the media type `kind`."""
    self.send_response(HTTPStatus.OK)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def setup(self) -> None:
    """Opens the streams, with a limit on the time that the whole header may take."""
    super().setup()
    self._incoming = _Incoming(self.connection, self.server.limits.header_seconds)
    self.rfile = io.BufferedReader(self._incoming)
    self.headers = None

  def end_headers(self) -> None:
    """Adds the headers of every answer."""
    for name, value in _HEADERS.items():
      self.send_header(name, value)
    super().end_headers()

  def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
    """Sends an error; `message` goes into the status line, so it becomes one line of ASCII."""
    self.connection.settimeout(self.server.limits.send_seconds)
    plain = " ".join((message or "").split())[:200]
    super().send_error(code, plain.encode("ascii", "backslashreplace").decode() or None, explain)
    self._drain()

  def log_message(self, *_: Any) -> None:
    """Suppresses the request log."""

  def _answer(self, method):
    """Calls `method` with the URL; every mistake in the request becomes an error status."""
    try:
      url = self._checked_url()
      self.connection.settimeout(self.server.limits.send_seconds)
      method(url)
    except Refused as e:
      self.send_error(e.status, e.message)
    except (ConnectionError, TimeoutError):
      raise
    except Exception:
      self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "The search failed; see the terminal.")
      raise

  def _checked_url(self):
    """Returns the request's URL if this page, or the user, sent the request."""
    try:
      url = urlsplit(self.path)
    except ValueError:
      raise Refused(HTTPStatus.BAD_REQUEST, "The address is malformed.") from None
    hosts = self.headers.get_all("Host", [])
    if len(hosts) != 1 or url.scheme or url.netloc:
      raise Refused(HTTPStatus.BAD_REQUEST, "The request needs one Host header and a path.")
    if hosts[0].strip().lower() not in self.server.hosts:
      raise Refused(
        HTTPStatus.FORBIDDEN,
        f"This server is not {hosts[0]!r}. Open http://127.0.0.1:{self.server.server_port}/, or "
        "restart it with --allowed_hosts set to the host and port in the address bar.",
      )
    origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
    if origin is not None:
      scheme, _, host = origin.strip().lower().partition("://")
      if scheme not in ("http", "https") or host not in self.server.hosts:
        raise Refused(HTTPStatus.FORBIDDEN, "Requests from other pages are refused.")
    # A link from anywhere may open the page itself, in a tab of its own.
    opens_page = (url.path, self.headers.get("Sec-Fetch-Dest")) == ("/", "document")
    if site not in (None, "same-origin", "none") and not opens_page:
      raise Refused(HTTPStatus.FORBIDDEN, "Requests from other pages are refused.")
    return url

  def _length(self, most):
    """Returns the length of the body, 1 to `most`."""
    given = self.headers.get_all("Content-Length", [])
    if not given or "Transfer-Encoding" in self.headers:
      raise Refused(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length.")
    if len(given) > 1 or not re.fullmatch(r"[0-9]{1,18}", given[0].strip()):
      raise Refused(HTTPStatus.BAD_REQUEST, f"Content-Length {given} is not a number.")
    length = int(given[0])
    if not length:
      raise Refused(HTTPStatus.BAD_REQUEST, "The query is empty.")
    if length > most:
      raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {most} bytes.")
    return length

  def _drain(self):
    """Reads what is left of a refused body for a moment.

    Closing a socket with unread bytes resets the connection, and the client may lose the answer.
    """
    if self.command == "GET":
      return
    self._incoming.ends = time.monotonic() + 1
    with contextlib.suppress(OSError):
      self.connection.shutdown(socket.SHUT_WR)
      while self._incoming.readinto(bytearray(2**16)):
        pass


class _Incoming(io.RawIOBase):
  """What a socket receives until a deadline, however slowly the bytes trickle in."""

  def __init__(self, connection: socket.socket, seconds: float):
    self._connection = connection
    self.ends = time.monotonic() + seconds

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    left = self.ends - time.monotonic()
    if left <= 0:
      raise TimeoutError("The request took too long.")
    before = self._connection.gettimeout()
    self._connection.settimeout(left)
    try:
      return self._connection.recv_into(buffer)
    finally:
      self._connection.settimeout(before)
