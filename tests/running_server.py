"""Runs a search server during a test."""

from collections.abc import Callable, Iterator
import contextlib
import os
import threading
from typing import Any

import numpy as np

from clip_jax.inference.picture_search import Query, Ranking
from clip_jax.inference.pictures import PictureFolder
from clip_jax.inference.web_ui import SearchServer


def search_server(
  title: str, paths: list[str], by_text: Callable | None, by_image: Callable | None, **options: Any
) -> SearchServer:
  """Returns a server for images of one folder, on any free port.

  Args:
    title: title of the page.
    paths: paths of the images.
    by_text, by_image: return [(number, score)] of a text, or of an encoded image, best first.
    **options: arguments of `SearchServer`.
  """

  def search(query: Query) -> Ranking:
    scores = np.zeros(len(paths), np.float32)
    if query.image is None and not query.text:
      return Ranking(np.arange(len(paths)), {})
    kind, found = (
      ("text", by_text(query.text)) if query.image is None else ("image", by_image(query.image))
    )
    for k, score in found:
      scores[k] = score
    return Ranking(np.array([k for k, _ in found], int), {kind: scores})

  names = [os.path.basename(path) for path in paths]
  pictures = PictureFolder(os.path.dirname(paths[0]))
  return SearchServer(title, pictures, names, search, port=0, **options)


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
