"""Web page that searches images by text or by a dropped image."""

from collections.abc import Callable, Iterable
from html import escape
from http import HTTPStatus
import io
import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs

from PIL import Image

from clip_jax.data.decode import MAX_BYTES, Picture, UnreadableImage
from clip_jax.data.untrusted import read_regular
from clip_jax.inference.local_server import Limits, LocalHandler, LocalServer, Refused

MOST_BYTES = 32 * 2**20  # Maximum size of an uploaded image.
THUMBNAIL = 320  # Longer side in pixels.


class SearchServer:
  """HTTP server for the search page, reachable from this machine only.

  Attributes:
    address: URL to open in a browser.
  """

  def __init__(
    self,
    title: str,
    paths: list[str],
    by_text: Callable[[str], list[tuple[int, float]]],
    by_image: Callable[[bytes], list[tuple[int, float]]],
    *,
    port: int = 8000,
    allowed_hosts: Iterable[str] = (),
    limits: Limits | None = None,
  ):
    """Binds the port.

    Args:
      title: title of the page.
      paths: paths of the images.
      by_text, by_image: functions that return (index in `paths`, score) of the images found for a
        text, or for an encoded image.
      port: TCP port; 0 for any free port.
      allowed_hosts: further hosts, with ports, under which a browser reaches the page, such as
        "localhost:9000" through a tunnel.
      limits: bounds on time, threads and uploads.

    Raises:
      UserError: the port is not available.
    """
    lock = threading.Lock()  # Run one search at a time.

    class Handler(_Handler):
      def html(self):
        return _PAGE.replace("TITLE", escape(title)).replace("COUNT", f"{len(paths):,}")

      def find(self, question):
        with lock:
          found = by_text(question) if isinstance(question, str) else by_image(question)
        return [
          {"picture": f"/picture/{k}", "path": paths[k], "score": round(score, 4)}
          for k, score in found
        ]

      def picture(self, k):
        return paths[k]

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
  """Serves the page at /, results as JSON at /find (GET or POST), thumbnails at /picture/N."""

  html: Callable[[], str]
  find: Callable[[Any], list[dict[str, Any]]]
  picture: Callable[[int], str]

  def get(self, url):
    """Sends the page, the results for a text, or a thumbnail."""
    if url.path == "/":
      self.send(self.html().encode(), "text/html; charset=utf-8")
    elif url.path == "/find":
      self.send(self._found(_text(url.query)), "application/json")
    elif url.path.startswith("/picture/"):
      if not (number := re.fullmatch(r"/picture/([0-9]{1,9})", url.path)):
        raise Refused(HTTPStatus.BAD_REQUEST, "The address of a picture ends in its number.")
      self._thumbnail(int(number[1]))
    else:
      super().get(url)

  def post(self, url):
    """Sends the images similar to the one in the request body."""
    if url.path != "/find":
      super().post(url)
    with self.body(MOST_BYTES) as content:
      found = self._found(content)
    self.send(found, "application/json")

  def _found(self, question):
    try:
      return json.dumps(self.find(question)).encode()
    except UnreadableImage as e:
      raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Not a readable image: {e}") from None

  def _thumbnail(self, number):
    try:
      # An index, so no other file is reachable.
      picture = Picture(read_regular(self.picture(number), MAX_BYTES))
      shrink = 2 if picture.can_shrink and min(picture.height, picture.width) > 4 * THUMBNAIL else 1
      image = Image.fromarray(picture.pixels(shrink))
    except (UnreadableImage, IndexError, OSError):
      raise Refused(HTTPStatus.NOT_FOUND, "There is no such picture.") from None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    made = io.BytesIO()
    image.save(made, "JPEG", quality=88)
    self.send(made.getvalue(), "image/jpeg")


def _text(query):
  """Returns the text of a query string."""
  try:
    text = " ".join(parse_qs(query, max_num_fields=8).get("text", [])).strip()
  except ValueError:
    raise Refused(HTTPStatus.BAD_REQUEST, "The query has too many fields.") from None
  if not text:
    raise Refused(HTTPStatus.BAD_REQUEST, "The query is empty.")
  return text


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>TITLE</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  body { font: 16px system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1.5rem;
         background: #f6f7f9; color: #1d2330 }
  body.over { outline: 4px dashed #2563eb; outline-offset: -12px }
  h1 { font-size: 1.3rem; margin: 0 0 .2rem } p { margin: .3rem 0 1rem; color: #5b6270 }
  form { display: flex; gap: .5rem }
  input[type=search] { flex: 1; font: inherit; padding: .6rem .8rem; border: 1px solid #b8bec9;
                       border-radius: .5rem }
  button, label { font: inherit; padding: .6rem 1rem; border: 0; border-radius: .5rem;
                  cursor: pointer; background: #2563eb; color: #fff }
  input[type=file] { position: absolute; opacity: 0; width: 1px }
  #found { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem;
           margin-top: 1.2rem }
  figure { margin: 0; background: #fff; border: 1px solid #d3d7df; border-radius: .5rem;
           padding: .6rem }
  figure img { width: 100%; height: 10rem; object-fit: contain }
  figcaption { font-size: .8rem; color: #5b6270; overflow-wrap: anywhere }
</style>
<h1>TITLE</h1>
<p>COUNT images. Describe what you are looking for, or drop an image here to find similar ones.</p>
<form><input type="search" autofocus aria-label="Search text" placeholder="a red car">
<button>Search</button><label>Image<input type="file" accept="image/*"></label></form>
<p id="says" role="status"></p><div id="found"></div>
<script>
  const box = document.querySelector("input[type=search]");
  const file = document.querySelector("input[type=file]");
  const says = document.getElementById("says"), found = document.getElementById("found");
  let asked = 0;
  async function find(request, what) {
    const mine = ++asked;
    says.textContent = "Searching for " + what + " ...";
    try {
      const answer = await request();
      if (mine !== asked) return;
      if (!answer.ok) throw new Error(answer.statusText);
      const all = await answer.json();
      found.replaceChildren(...all.map(one => {
        const figure = document.createElement("figure"), image = document.createElement("img");
        const caption = document.createElement("figcaption");
        image.src = one.picture; image.alt = one.path; image.loading = "lazy";
        caption.textContent = one.score.toFixed(3) + "  " + one.path;
        figure.append(image, caption);
        return figure;
      }));
      says.textContent = all.length + " best matches for " + what;
    } catch (error) { if (mine === asked) says.textContent = error.message; }
  }
  document.querySelector("form").onsubmit = event => {
    event.preventDefault();
    if (box.value.trim())
      find(() => fetch("/find?text=" + encodeURIComponent(box.value)),
           "\\u201c" + box.value + "\\u201d");
  };
  const like = picture => picture && find(
      () => fetch("/find", {method: "POST", body: picture}), picture.name);
  file.onchange = () => like(file.files[0]);
  document.body.ondragover = event => {
    event.preventDefault(); document.body.classList.add("over");
  };
  document.body.ondragleave = () => document.body.classList.remove("over");
  document.body.ondrop = event => {
    event.preventDefault(); document.body.classList.remove("over");
    like(event.dataTransfer.files[0]);
  };
</script></html>
"""
