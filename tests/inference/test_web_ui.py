"""Tests of the HTTP server of the search page."""

import io
import json
from urllib import error, parse, request

from PIL import Image
import pytest

from clip_jax.data.decode import decode
from clip_jax.errors import UserError
from clip_jax.inference.web_ui import MOST_BYTES, SearchServer
from running_server import running


@pytest.fixture
def page(tmp_path):
  paths = []
  for name, colour in (("red.png", "red"), ("blue <1>.png", "blue")):
    Image.new("RGB", (400, 100), colour).save(tmp_path / name)
    paths.append(str(tmp_path / name))
  (tmp_path / "secret.txt").write_text("secret")

  def by_text(text):
    return [(0, 0.5), (1, 0.25)] if "red" in text else [(1, 0.5)]

  def by_image(image):
    return [(0, 1.0)] if decode(image)[0, 0, 0] > 128 else [(1, 1.0)]

  with running(SearchServer("pictures & <more>", paths, by_text, by_image, port=0)) as made:
    yield made


def get(page, path, data=None):
  with request.urlopen(page.address + path, data) as answer:
    return answer.headers["Content-Type"], answer.read()


def status(page, path, data=None):
  with pytest.raises(error.HTTPError) as raised:
    get(page, path, data)
  return raised.value.code


def test_the_page_shows_the_title_and_the_number_of_images(page):
  kind, html = get(page, "")
  assert kind == "text/html; charset=utf-8"
  assert "pictures &amp; &lt;more&gt;" in html.decode() and "2 images" in html.decode()


def test_search_by_text_returns_the_best_first(page):
  kind, answer = get(page, "find?text=" + parse.quote("a red car"))
  found = json.loads(answer)
  assert kind == "application/json"
  assert [(one["picture"], one["score"]) for one in found] == [
    ("/picture/0", 0.5),
    ("/picture/1", 0.25),
  ]
  assert found[1]["path"].endswith("blue <1>.png")


def test_search_by_image(page):
  content = io.BytesIO()
  Image.new("RGB", (8, 8), "red").save(content, "PNG")
  assert json.loads(get(page, "find", content.getvalue())[1])[0]["picture"] == "/picture/0"


def test_a_thumbnail_is_a_downscaled_image(page):
  kind, content = get(page, "picture/1")
  image = Image.open(io.BytesIO(content))
  assert kind == "image/jpeg" and image.size == (320, 80)
  assert image.getpixel((40, 40))[2] > 200


@pytest.mark.parametrize(
  "path, data, code",
  [
    ("picture/2", None, 404),
    ("picture/../secret.txt", None, 400),
    ("secret.txt", None, 404),
    ("picture/-1", None, 400),
    ("find?text=", None, 400),
    ("find", b"no picture", 415),
    ("find", b"", 400),
    ("elsewhere", b"x", 404),
  ],
)
def test_unknown_addresses_and_invalid_queries_are_rejected(page, path, data, code):
  assert status(page, path, data) == code


def test_a_request_that_is_too_large_is_rejected_unread(page):
  host = parse.urlsplit(page.address)
  import http.client

  connection = http.client.HTTPConnection(host.hostname, host.port)
  connection.putrequest("POST", "/find")
  connection.putheader("Content-Length", str(MOST_BYTES + 1))
  connection.endheaders()
  assert connection.getresponse().status == 413
  connection.close()


def test_a_port_in_use_is_an_error(page):
  port = parse.urlsplit(page.address).port
  with pytest.raises(UserError, match=f"Port {port} is not available.*Set --port"):
    SearchServer("again", [], None, None, port=port)
