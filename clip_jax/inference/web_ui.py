"""Web page that searches images by text or by a dropped image."""

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from clip_jax.data.decode import UnreadableImage, decode
from clip_jax.errors import UserError

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
  ):
    """Binds the port.

    Args:
      title: title of the page.
      paths: paths of the images.
      by_text, by_image: functions that return (index in `paths`, score) of the images found for a
        text, or for an encoded image.
      port: TCP port; 0 for any free port.

    Raises:
      UserError: the port is not available.
    """
    lock = threading.Lock()  # Run one search at a time.

    class Handler(_Handler):
      def html(self):
        return _PAGE.replace("TITLE", _escaped(title)).replace("COUNT", f"{len(paths):,}")

      def find(self, question):
        with lock:
          found = by_text(question) if isinstance(question, str) else by_image(question)
        return [
          {"picture": f"/picture/{k}", "path": paths[k], "score": round(score, 4)}
          for k, score in found
        ]

      def picture(self, k):
        return paths[k]

    try:
      self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as e:
      raise UserError(
        f"Port {port} is not available: {e.strerror}. Set --port to another port, or "
        "to 0 for any free port."
      ) from e
    self.address = f"http://127.0.0.1:{self._server.server_port}/"

  def serve(self) -> None:
    """Handles requests until `close` is called or Ctrl-C is pressed."""
    self._server.serve_forever()

  def close(self) -> None:
    """Stops `serve` and closes the port."""
    self._server.shutdown()
    self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
  """Serves the page at /, results as JSON at /find (GET or POST), thumbnails at /picture/N."""

  html: Callable[[], str]
  find: Callable[[Any], list[dict[str, Any]]]
  picture: Callable[[int], str]

  def do_GET(self):
    """Sends the page, the results for a text, or a thumbnail."""
    url = urlsplit(self.path)
    if url.path == "/":
      self._send(self.html().encode(), "text/html; charset=utf-8")
    elif url.path == "/find":
      self._find(" ".join(parse_qs(url.query).get("text", [])).strip())
    elif number := re.fullmatch(r"/picture/(\d+)", url.path):
      self._thumbnail(int(number[1]))
    else:
      self.send_error(HTTPStatus.NOT_FOUND)

  def do_POST(self):
    """Sends the images similar to the one in the request body."""
    length = int(self.headers.get("Content-Length") or 0)
    if urlsplit(self.path).path != "/find":
      self.send_error(HTTPStatus.NOT_FOUND)
    elif not 0 < length <= MOST_BYTES:
      self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {MOST_BYTES} bytes.")
    else:
      self._find(self.rfile.read(length))

  def _find(self, question):
    if not question:
      self.send_error(HTTPStatus.BAD_REQUEST, "The query is empty.")
      return
    try:
      found = self.find(question)
    except UnreadableImage as e:
      self.send_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Not a readable image: {e}"[:200])
      return
    self._send(json.dumps(found).encode(), "application/json")

  def _thumbnail(self, number):
    try:
      with open(self.picture(number), "rb") as f:  # An index, so no other file is reachable.
        image = Image.fromarray(decode(f.read()))
    except (UnreadableImage, IndexError, OSError):
      self.send_error(HTTPStatus.NOT_FOUND)
      return
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    made = io.BytesIO()
    image.save(made, "JPEG", quality=88)
    self._send(made.getvalue(), "image/jpeg")

  def _send(self, content, kind):
    self.send_response(HTTPStatus.OK)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    """Suppresses the request log."""


def _escaped(text):
  return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
