"""Web page that searches images by text, by an image, or by both."""

from collections.abc import Callable, Iterable, Sequence
import functools
from html import escape
from http import HTTPStatus
from importlib import resources
import io
import json
import re
from urllib.parse import SplitResult, parse_qs

from PIL import Image

from clip_jax.data.decode import Picture, UnreadableImage
from clip_jax.inference.local_server import Limits, LocalHandler, LocalServer, Refused
from clip_jax.inference.picture_search import Query, Ranking
from clip_jax.inference.pictures import Pictures

MOST_BYTES = 32 * 2**20  # Maximum size of an uploaded image.
SIZES = {
  "picture": 320,
  "full": 1600,
}  # Longer side of thumbnails and of enlarged images, in pixels.
_LABELS = 100  # Most labels of one query.
_ASSETS = {"/search.css": "text/css; charset=utf-8", "/search.js": "text/javascript; charset=utf-8"}


class SearchServer:
  """HTTP server for the search page, reachable from this machine only.

  Attributes:
    address: URL to open in a browser.
  """

  def __init__(
    self,
    title: str,
    pictures: Pictures,
    names: Sequence[str],
    search: Callable[[Query], Ranking],
    *,
    per_page: int = 20,
    port: int = 8000,
    allowed_hosts: Iterable[str] = (),
    limits: Limits | None = None,
  ):
    """Binds the port.

    Args:
      title: title of the page.
      pictures: the images, with their titles and captions.
      names: names of those that are ranked, in the order of the ranking.
      search: ranks the images; called from several threads.
      per_page: number of results that are sent at a time.
      port: TCP port; 0 for any free port.
      allowed_hosts: further hosts, with ports, under which a browser reaches the page, such as
        "localhost:9000" through a tunnel.
      limits: bounds on time, threads and uploads.

    Raises:
      UserError: the port is not available.
    """
    page = asset("search.html").replace("COUNT", f"{len(names):,}").replace("TITLE", escape(title))

    class Handler(_Handler):
      pass

    Handler.page, Handler.search, Handler.per_page = page, staticmethod(search), per_page
    Handler.pictures, Handler.names = pictures, names
    self._server = LocalServer(port, Handler, hosts=allowed_hosts, limits=limits)
    self.address = f"http://127.0.0.1:{self._server.server_port}/"

  def serve(self) -> None:
    """Handles requests until `close` is called or Ctrl-C is pressed."""
    self._server.serve_forever()

  def close(self) -> None:
    """Stops `serve` and closes the port."""
    self._server.shutdown()
    self._server.server_close()


class _Handler(LocalHandler):
  """Serves the page at /, results as JSON at /find, and images at /picture/N and /full/N."""

  page: str
  pictures: Pictures
  names: Sequence[str]
  search: Callable[[Query], Ranking]
  per_page: int

  def get(self, url: SplitResult) -> None:
    """Sends the page, a page of results, or an image."""
    if url.path == "/":
      self.send(self.page.encode(), "text/html; charset=utf-8")
    elif url.path in _ASSETS:
      self.send(asset(url.path[1:]).encode(), _ASSETS[url.path])
    elif url.path == "/find":
      self._find(url.query, None)
    elif url.path.startswith(("/picture/", "/full/")):
      if not (found := re.fullmatch(r"/(picture|full)/([0-9]{1,9})", url.path)):
        raise Refused(HTTPStatus.BAD_REQUEST, "The address of an image ends in its number.")
      self._image(int(found[2]), SIZES[found[1]])
    else:
      super().get(url)

  def post(self, url: SplitResult) -> None:
    """Sends the images that resemble the one in the request body."""
    if url.path != "/find":
      super().post(url)
    with self.body(MOST_BYTES) as content:
      self._find(url.query, content)

  def _find(self, text, content):
    fields = _fields(text)
    wanted, start = _number(fields, "like"), _number(fields, "start") or 0
    labels = [" ".join(label.split()) for label in fields.get("labels", "").split(",")]
    query = Query(
      text=fields.get("q", "").strip(),
      like=wanted if content is None else None,
      image=content,
      labels=tuple(dict.fromkeys(filter(None, labels))),
      seed=_number(fields, "seed") or 0,
    )
    if len(query.labels) > _LABELS:
      raise Refused(HTTPStatus.BAD_REQUEST, f"At most {_LABELS} descriptions to compare with.")
    try:
      ranking = self.search(query)
    except UnreadableImage as e:
      raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Not a readable image: {e}") from None
    except IndexError:
      raise Refused(HTTPStatus.NOT_FOUND, "There is no such image.") from None
    part = ranking.order[start : start + self.per_page]
    like = None if query.like is None else {"index": query.like, "name": self._title(query.like)}
    answer = {
      "results": [self._result(ranking, int(k)) for k in part],
      "total": len(ranking.order),
      "like": like,
    }
    self.send(json.dumps(answer).encode(), "application/json")

  def _result(self, ranking, k):
    scores = {name: round(float(values[k]), 4) for name, values in ranking.scores.items()}
    caption = self.pictures.caption(self.names[k])
    result = {"index": k, "name": self._title(k), "caption": caption, "scores": scores}
    if ranking.probability is not None:
      result["probability"] = round(float(ranking.probability[k]), 4)
    return result

  def _title(self, k):
    return self.pictures.title(self.names[k])

  def _image(self, number, longest):
    try:
      # A number, so no other file is reachable.
      picture = Picture(self.pictures.read(self.names[number]))
      shrink = 2 if picture.can_shrink and min(picture.height, picture.width) > 4 * longest else 1
      image = Image.fromarray(picture.pixels(shrink))
    except (UnreadableImage, IndexError, OSError):
      raise Refused(HTTPStatus.NOT_FOUND, "There is no such image.") from None
    image.thumbnail((longest, longest))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=88)
    self.send(encoded.getvalue(), "image/jpeg")


@functools.cache
def asset(name: str) -> str:
  """Returns the text of a file of the page."""
  return (resources.files(__package__) / "assets" / name).read_text("utf-8")


def _fields(text):
  """Returns the fields of a query string, each of which may occur once."""
  try:
    fields = parse_qs(text, max_num_fields=8)
  except ValueError:
    raise Refused(HTTPStatus.BAD_REQUEST, "The query has too many fields.") from None
  if any(len(values) > 1 for values in fields.values()):
    raise Refused(HTTPStatus.BAD_REQUEST, "A field of the query occurs twice.")
  return {name: values[0] for name, values in fields.items()}


def _number(fields, name):
  """Returns a field as a number, None if it is missing."""
  if name not in fields:
    return None
  if not re.fullmatch(r"[0-9]{1,9}", fields[name]):
    raise Refused(HTTPStatus.BAD_REQUEST, f"{name}={fields[name]} is not a number.")
  return int(fields[name])
