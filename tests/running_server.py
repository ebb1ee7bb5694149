"""Runs a search server during a test."""

from collections.abc import Iterator
import contextlib
import threading

from clip_jax.inference.web_ui import SearchServer


@contextlib.contextmanager
def running(server: SearchServer) -> Iterator[SearchServer]:
  """Runs the server in a thread until the end of the `with` block."""
  thread = threading.Thread(target=server.serve)
  thread.start()
  try:
    yield server
  finally:
    server.close()
    thread.join()
