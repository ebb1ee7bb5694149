"""Tests of the search page against requests from other pages, slow clients and malformed bytes."""

import contextlib
import json
import os
import random
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
import pytest

from clip_jax import search
from clip_jax.data.decode import decode
from clip_jax.inference import web_ui
from clip_jax.inference.local_server import Limits
from clip_jax.inference.pictures import PictureFolder
from clip_jax.inference.web_ui import MOST_BYTES
from running_server import running, search_server

QUICK = Limits(
  threads=4, uploads=2, wait_seconds=0.2, header_seconds=0.6, body_seconds=0.6, send_seconds=2
)


@pytest.fixture
def picture(tmp_path):
  path = tmp_path / "red.png"
  Image.new("RGB", (40, 10), "red").save(path)
  return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  path = tmp_path_factory.mktemp("page") / "red.png"
  Image.new("RGB", (40, 10), "red").save(path)
  with page(path) as made:
    yield made


@contextlib.contextmanager
def page(picture, by_text=lambda text: [(0, 0.5)], **options):
  by_image = lambda image: [(0, float(decode(image)[0, 0, 0]))]
  with running(search_server("pictures", [str(picture)], by_text, by_image, **options)) as it:
    it.port = urlsplit(it.address).port
    yield it


def answer(port, content, *, end=False, seconds=10):
  """Sends raw bytes and returns (status, or None without a status line; body)."""
  with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
    connection.sendall(content)
    if end:
      connection.shutdown(socket.SHUT_WR)
    got = b""
    with contextlib.suppress(ConnectionResetError):
      while piece := connection.recv(2**16):
        got += piece
  if not got.startswith(b"HTTP/"):
    return None, got
  head, _, body = got.partition(b"\r\n\r\n")
  return int(head.split()[1]), body


def request(port, line="GET /find?q=red HTTP/1.1", body=b"", host=None, **headers):
  headers = {"Host": host or f"127.0.0.1:{port}"} | {
    k.replace("_", "-"): v for k, v in headers.items()
  }
  if line.startswith("POST"):
    headers.setdefault("Content-Length", str(len(body)))
  lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
  return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def test_only_requests_to_this_machine_by_name_are_answered(picture):
  with page(picture, allowed_hosts=("localhost:9000", "Box.example:80")) as made:
    for host in (f"localhost:{made.port}", f"LOCALHOST:{made.port}", f"[::1]:{made.port}"):
      assert answer(made.port, request(made.port, host=host))[0] == 200, host
    for host in ("localhost:9000", "box.example:80"):
      assert answer(made.port, request(made.port, host=host))[0] == 200, host
    for host in (
      "evil.example",
      f"evil.example:{made.port}",
      "127.0.0.1",
      "127.0.0.1:1",
      "localhost.",
    ):
      status, body = answer(made.port, request(made.port, host=host))
      assert status == 403 and b"--allowed_hosts" in body, host
    both = request(made.port).replace(b"Host:", b"Host: evil.example\r\nHost:")
    assert answer(made.port, both)[0] == 400
    assert answer(made.port, b"GET / HTTP/1.1\r\n\r\n")[0] == 400
    assert answer(made.port, request(made.port, "GET http://evil.example/ HTTP/1.1"))[0] == 400


@pytest.mark.parametrize(
  "line", ["GET /find?q=red HTTP/1.1", "GET /picture/0 HTTP/1.1", "POST /find HTTP/1.1"]
)
@pytest.mark.parametrize(
  "headers",
  [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"},
  ],
)
def test_other_pages_cannot_search_or_read_pictures(made, picture, line, headers):
  status, body = answer(made.port, request(made.port, line, picture.read_bytes(), **headers))
  assert status == 403 and b"red.png" not in body


def test_the_page_itself_can_and_a_link_may_open_it(picture):
  with page(picture) as made:
    own = {"Origin": f"http://127.0.0.1:{made.port}", "Sec_Fetch_Site": "same-origin"}
    post = request(made.port, "POST /find HTTP/1.1", picture.read_bytes(), **own)
    status, body = answer(made.port, post)
    assert status == 200 and json.loads(body)["results"][0]["scores"] == {"image": 255}
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert answer(made.port, request(made.port, "GET / HTTP/1.1", **link))[0] == 200
    typed = {"Sec_Fetch_Site": "none", "Sec_Fetch_Dest": "document"}
    assert answer(made.port, request(made.port, "GET / HTTP/1.1", **typed))[0] == 200
    framed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"}
    assert answer(made.port, request(made.port, "GET / HTTP/1.1", **framed))[0] == 403


MALFORMED = [
  ("POST /find HTTP/1.1", {"Content_Length": "ten"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "-1"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "+5"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "1_0"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "٣"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "9" * 5000}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": "5\r\nContent-Length: 6"}, 400),
  ("POST /find HTTP/1.1", {"Content_Length": None}, 411),
  ("POST /find HTTP/1.1", {"Transfer_Encoding": "chunked"}, 411),
  ("POST /find HTTP/1.1", {"Content_Length": str(MOST_BYTES + 1)}, 413),
  ("POST /find HTTP/1.1", {"Content_Length": "0"}, 400),
  ("GET /picture/x HTTP/1.1", {}, 400),
  ("GET /picture/-1 HTTP/1.1", {}, 400),
  ("GET /picture/ HTTP/1.1", {}, 400),
  (f"GET /picture/{'1' * 5000} HTTP/1.1", {}, 400),
  ("GET /picture/1 HTTP/1.1", {}, 404),
  ("GET /find?like=x HTTP/1.1", {}, 400),
  ("GET /find?q=%00%20 HTTP/1.1", {}, 200),
  (f"GET /find?{'&'.join('x=1' for _ in range(100))} HTTP/1.1", {}, 400),
  ("GET //[ HTTP/1.1", {}, 404),
  ("GET [ HTTP/1.1", {}, 404),
  ("GET http://[/ HTTP/1.1", {}, 400),
  ("GET / HTTP/x", {}, None),  # Python answers without a status line, as in HTTP/0.9.
  ("GET", {}, None),
  ("PUT /find HTTP/1.1", {}, 501),
]


@pytest.mark.parametrize("line, headers, status", MALFORMED, ids=lambda x: str(x)[:40])
def test_a_malformed_request_gets_a_status_and_no_traceback(made, capfd, line, headers, status):
  headers = {name: value and value.encode().decode("latin-1") for name, value in headers.items()}
  got, body = answer(made.port, request(made.port, line, **headers), end=True)
  assert got == status and (status or b"400" in body)
  assert capfd.readouterr().err == ""


def test_a_truncated_body_and_a_client_that_goes_away_leave_no_traceback(picture, capfd):
  with page(picture, limits=QUICK) as made:
    post = request(made.port, "POST /find HTTP/1.1", picture.read_bytes())
    assert answer(made.port, post[:-5], end=True)[0] == 400
    assert answer(made.port, post[:-5])[0] == 408
    for _ in range(3):
      with socket.create_connection(("127.0.0.1", made.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(post[:-5])  # Closing now resets the connection.
    time.sleep(0.3)
  assert capfd.readouterr().err == ""


def test_an_error_with_newlines_and_other_scripts_stays_on_one_line(picture, capfd):
  def by_text(text):
    raise web_ui.UnreadableImage("日本\r\nSet-Cookie: x=1\r\n\r\n<script>")

  with page(picture, by_text) as made:
    with socket.create_connection(("127.0.0.1", made.port)) as connection:
      connection.sendall(request(made.port))
      head = connection.makefile("rb").read().partition(b"\r\n\r\n")[0]
  assert head.startswith(b"HTTP/1.0 415 Not a readable image: \\u65e5\\u672c Set-Cookie")
  assert b"\r\nSet-Cookie" not in head and capfd.readouterr().err == ""


def test_random_bytes_never_stop_the_server_or_print_a_traceback(picture, capfd):
  rng = random.Random(0)
  with page(picture, limits=QUICK) as made:
    requests = [
      request(made.port),
      request(made.port, "POST /find HTTP/1.1", picture.read_bytes()),
      request(made.port, "GET /picture/0 HTTP/1.1", Origin=f"http://127.0.0.1:{made.port}"),
    ]
    statuses = set()
    for _ in range(200):
      content = bytearray(rng.choice(requests))
      for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(content))
        content[at : at + rng.choice((0, 1, 1, 20))] = rng.randbytes(rng.choice((0, 1, 1, 30)))
      statuses.add(answer(made.port, bytes(content), end=True)[0])
    assert answer(made.port, requests[0])[0] == 200
  assert {200, 400, 403} <= statuses and 500 not in statuses
  assert capfd.readouterr().err == ""


def test_slow_clients_are_cut_off_and_do_not_keep_others_out(picture, capfd):
  with page(picture, limits=QUICK) as made:
    threads = threading.active_count()
    open_ones = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(20)]
    begun = time.monotonic()

    def trickle():
      with contextlib.suppress(OSError):
        for letter in b"GET / HTTP/1.1\r\nHost: x" + bytes(1000):
          for connection in open_ones:
            connection.sendall(bytes([letter]))
          time.sleep(0.05)  # Never silent for as long as a time limit for each read would allow.

    sender = threading.Thread(target=trickle)
    sender.start()
    while answer(made.port, request(made.port))[0] != 200:
      assert time.monotonic() - begun < 10
      assert threading.active_count() - threads <= QUICK.threads + 1
    for connection in open_ones:
      connection.close()
    sender.join()
  assert capfd.readouterr().err == ""


def test_uploads_in_memory_are_bounded(picture):
  inside, most, lock = [0], [0], threading.Lock()

  def by_image(image):
    with lock:
      inside[0] += 1
      most[0] = max(most[0], inside[0])
    time.sleep(0.1)
    with lock:
      inside[0] -= 1
    return []

  limits = Limits(threads=8, uploads=2, wait_seconds=0.3)
  made = search_server("x", [str(picture)], None, by_image, limits=limits)
  with running(made):
    port = urlsplit(made.address).port
    post = request(port, "POST /find HTTP/1.1", picture.read_bytes())
    stuck = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for connection in stuck:
      connection.sendall(post[:-1])  # Holds an upload slot.
    time.sleep(0.2)
    assert answer(port, post)[0] == 503
    for connection in stuck:
      connection.sendall(post[-1:])
      assert connection.recv(12) == b"HTTP/1.0 200"
      connection.close()
    assert answer(port, post)[0] == 200


def test_a_bug_in_the_search_is_an_error_500_with_a_traceback(picture, capfd):
  def by_text(text):
    raise ZeroDivisionError

  with page(picture, by_text) as made:
    assert answer(made.port, request(made.port))[0] == 500
    time.sleep(0.1)
  assert "ZeroDivisionError" in capfd.readouterr().err


def test_search_passes_the_allowed_hosts_on(picture, monkeypatch):
  made = {}

  class Page:
    address = "http://127.0.0.1:1/"

    def __init__(self, *_, **options):
      made.update(options)

    def serve(self):
      raise KeyboardInterrupt

  class Found:
    pictures, unreadable = PictureFolder(picture.parent), []
    names, z = [picture.name], np.ones((1, 1))

  monkeypatch.setattr(web_ui, "SearchServer", Page)
  monkeypatch.setattr(
    "clip_jax.inference.loading.load", lambda where, trust: type("E", (), {"model": 0})
  )
  monkeypatch.setattr("clip_jax.inference.similarity.model_fingerprint", lambda model: "x")
  monkeypatch.setattr("clip_jax.inference.image_index.build_index", lambda *_: Found())
  arguments = ["--model=m", "--images=x", "--serve", "--allowed_hosts=localhost:9000,b:1"]
  assert search.main(arguments) == 0
  assert made["allowed_hosts"] == ("localhost:9000", "b:1")


def test_a_picture_that_became_a_fifo_is_not_waited_for(picture):
  with page(picture) as made:
    picture.unlink()
    os.mkfifo(picture)
    assert answer(made.port, request(made.port, "GET /picture/0 HTTP/1.1"))[0] == 404
