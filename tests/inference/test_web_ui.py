"""Tests of the HTTP server of the search page."""

import io
import json
import os
from urllib import error, parse, request

from PIL import Image
import pytest

from clip_jax.data.decode import decode
from clip_jax.errors import UserError
from clip_jax.inference.web_ui import MOST_BYTES, SearchServer
from running_server import running, search_server


@pytest.fixture
def page(tmp_path):
  paths = []
  for name, colour in (("red.png", "red"), ("blue <1>.png", "blue")):
    Image.new("RGB", (2000, 500), colour).save(tmp_path / name)
    paths.append(str(tmp_path / name))
  (tmp_path / "secret.txt").write_text("secret")
  (tmp_path / "red.txt").write_text("a red\n <b>flag</b> ")
  os.symlink(tmp_path / "secret.txt", tmp_path / "blue <1>.txt")

  def by_text(text):
    return [(0, 0.5), (1, 0.25)] if "red" in text else [(1, 0.5)]

  def by_image(image):
    return [(0, 1.0)] if decode(image)[0, 0, 0] > 128 else [(1, 1.0)]

  with running(search_server("pictures & <more> COUNT", paths, by_text, by_image)) as made:
    yield made


def get(page, path, data=None):
  with request.urlopen(page.address + path, data) as answer:
    return answer.headers["Content-Type"], answer.read()


def found(page, path, data=None):
  kind, content = get(page, path, data)
  assert kind == "application/json"
  return json.loads(content)


def status(page, path, data=None):
  with pytest.raises(error.HTTPError) as raised:
    get(page, path, data)
  return raised.value.code


def test_the_page_shows_the_title_and_the_number_of_images(page):
  kind, html = get(page, "")
  assert kind == "text/html; charset=utf-8"
  assert "pictures &amp; &lt;more&gt; COUNT" in html.decode() and "2 images" in html.decode()


def test_the_page_uses_only_files_that_it_serves(page):
  with request.urlopen(page.address) as answer:
    policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
  assert policy.startswith("default-src 'self'") and "unsafe" not in policy
  assert "<style" not in html and "style=" not in html and html.count("<script") == 1
  for path, kind in (("search.css", "text/css"), ("search.js", "text/javascript")):
    assert f'"/{path}"' in html and get(page, path)[0].startswith(kind)


def test_search_by_text_returns_the_best_first(page):
  answer = found(page, "find?q=" + parse.quote("a red car"))
  assert [(one["index"], one["scores"]) for one in answer["results"]] == [
    (0, {"text": 0.5}),
    (1, {"text": 0.25}),
  ]
  assert answer["total"] == 2 and answer["like"] is None
  assert [one["name"] for one in answer["results"]] == ["red.png", "blue <1>.png"]


def test_a_text_next_to_an_image_is_its_caption_unless_it_is_a_link(page):
  captions = [one["caption"] for one in found(page, "find?q=red")["results"]]
  assert captions == ["a red <b>flag</b>", ""]


def test_search_by_image(page):
  content = io.BytesIO()
  Image.new("RGB", (8, 8), "red").save(content, "PNG")
  assert found(page, "find", content.getvalue())["results"][0]["index"] == 0


def test_results_come_in_pages(page):
  rest = found(page, "find?q=red&start=1")
  assert [one["index"] for one in rest["results"]] == [1] and rest["total"] == 2
  assert found(page, "find?q=red&start=2")["results"] == []


@pytest.mark.parametrize("path, size", [("picture/1", (320, 80)), ("full/1", (1600, 400))])
def test_images_are_sent_downscaled(page, path, size):
  kind, content = get(page, path)
  image = Image.open(io.BytesIO(content))
  assert kind == "image/jpeg" and image.size == size
  assert image.getpixel((40, 40))[2] > 200


@pytest.mark.parametrize(
  "path, data, code",
  [
    ("picture/2", None, 404),
    ("full/2", None, 404),
    ("picture/../secret.txt", None, 400),
    ("secret.txt", None, 404),
    ("red.txt", None, 404),
    ("picture/-1", None, 400),
    ("find?like=x", None, 400),
    ("find?q=red&start=-1", None, 400),
    ("find?q=red&q=blue", None, 400),
    ("find?q=red&labels=" + ",".join(map(str, range(101))), None, 400),
    ("find?" + "&".join(f"{k}=1" for k in range(9)), None, 400),
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
    SearchServer("again", "", [], None, port=port)
