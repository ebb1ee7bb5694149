"""A search page that answers while a test asks."""

from collections.abc import Iterator
import contextlib
import threading

from clip_jax.page import Page


@contextlib.contextmanager
def served(page: Page) -> Iterator[Page]:
  """The page, until the end of the `with`."""
  thread = threading.Thread(target=page.serve)
  thread.start()
  try:
    yield page
  finally:
    page.close()
    thread.join()
