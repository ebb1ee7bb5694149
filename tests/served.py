"""Serves a search page during a test."""

from collections.abc import Iterator
import contextlib
import threading

from clip_jax.inference.web_ui import SearchServer


@contextlib.contextmanager
def served(page: SearchServer) -> Iterator[SearchServer]:
  """Serves the page in a thread until the end of the `with` block."""
  thread = threading.Thread(target=page.serve)
  thread.start()
  try:
    yield page
  finally:
    page.close()
    thread.join()
