"""Tests of image search: by text and by image, caching of the embeddings, and the web page."""

import io
import json
import os
import threading
from urllib import request

import numpy as np
from PIL import Image
import pytest

from clip_jax import search
from clip_jax.data.folder_walk import OUTSIDE, SPECIAL
from clip_jax.data.records import write
from clip_jax.errors import UserError
from clip_jax.inference import image_index, web_ui
from mutations import damaged_bytes

COLOURS = {"red.png": (255, 0, 0), "deep/green.jpg": (0, 255, 0), "blue.webp": (0, 0, 255)}


class Colours:
  """An embedder of colours: the mean colour of an image, and the colour that a text names."""

  batch_size, threads, model = 2, 2, None

  def __init__(self):
    self.seen = 0

  def preprocess(self, image):
    from clip_jax.data.decode import decode

    return np.asarray(Image.fromarray(decode(image)).resize((2, 2)))

  def encode_share(self, share):
    self.seen += len(share)
    z = share.reshape(len(share), -1, 3).mean(1).astype(np.float32) + 1
    return None, z / np.linalg.norm(z, axis=1, keepdims=True)

  def encode_image(self, images):
    return self.encode_share(np.stack([self.preprocess(image) for image in images]))[1]

  def encode_text(self, texts):
    return np.eye(3, dtype=np.float32)[
      [("red", "green", "blue").index(text.split()[-1]) for text in texts]
    ]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tmp_path / "pictures"
  for name, colour in COLOURS.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), colour).save(folder / name)
  (folder / "broken.png").write_bytes(b"\x89PNG no picture")
  (folder / ".hidden.png").write_bytes(b"")
  (folder / "notes.txt").write_text("no picture")
  return folder


@pytest.fixture
def colours(monkeypatch):
  embedder = Colours()
  monkeypatch.setattr("clip_jax.inference.loading.load", lambda where, trust: embedder)
  monkeypatch.setattr("clip_jax.inference.similarity.model_fingerprint", lambda model: "colours")
  return embedder


def test_search_by_text(pictures, colours, capsys):
  assert search.main(["--model=m", f"--images={pictures}", "something", "red", "--top=2"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "1 files cannot be read and are skipped: broken.png" in lines
  scores = [line.split("  ", 1) for line in lines if line.endswith((".png", ".jpg", ".webp"))][1:]
  assert len(scores) == 2 and scores[0][1] == str(pictures / "red.png")
  assert float(scores[0][0]) > 0.99 > float(scores[1][0])


def test_search_by_image_and_contact_sheet(pictures, colours, tmp_path, capsys):
  Image.new("RGB", (9, 9), (10, 240, 10)).save(tmp_path / "like.png")
  search.main(
    [
      "--model=m",
      f"--images={pictures}",
      f"--query_image={tmp_path}/like.png",
      "--top=1",
      f"--contact_sheet={tmp_path}/sheet.png",
    ]
  )
  assert str(pictures / "deep/green.jpg") in capsys.readouterr().out
  sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
  assert (np.abs(sheet.astype(int) - (0, 255, 0)).sum(-1) < 30).sum() > 1000


def test_only_new_and_changed_images_are_embedded(pictures, colours):
  find = lambda: image_index.build_index(colours, "colours", pictures, lambda line: None)
  first = find()
  assert colours.seen == 3 and first.unreadable == ["broken.png"]
  again = find()
  assert colours.seen == 3 and again.names == first.names == sorted(COLOURS)
  np.testing.assert_array_equal(again.z, first.z)

  Image.new("RGB", (41, 20), (0, 0, 9)).save(pictures / "red.png")  # Replaces the image.
  (pictures / "blue.webp").unlink()
  changed = find()
  assert colours.seen == 4 and changed.names == ["deep/green.jpg", "red.png"]
  assert changed.z[1].argmax() == 2
  image_index.build_index(colours, "another model", pictures, lambda line: None)
  assert colours.seen == 6


def test_prepared_records_are_searched(tmp_path, monkeypatch, colours, capsys):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  records = [
    {"image": np.full((8, 8, 3), colour, np.uint8), "text": [f"a {name}", "other"], "key": name}
    for name, colour in COLOURS.items()
  ]
  records += [{"image": b"damaged", "text": "nothing"}]
  (tmp_path / "out").mkdir()
  write(records, str(tmp_path / "out/x.array_record"))
  found = image_index.build_index(colours, "colours", tmp_path / "out", print)
  assert found.names == ["0", "1", "2"] and found.unreadable == ["3"]
  search.main(["--model=m", f"--images={tmp_path / 'out'}", "green", "--top=1"])
  assert capsys.readouterr().out.splitlines()[-1].endswith("  deep/green.jpg")
  assert [found.pictures.caption(name) for name in ("1", "3")] == ["a deep/green.jpg", "nothing"]
  assert [found.pictures.title(name) for name in ("1", "3")] == ["deep/green.jpg", "record 3"]
  write(records[:2], str(tmp_path / "out/x.array_record"))
  assert image_index.build_index(colours, "colours", tmp_path / "out", print).names == ["0", "1"]


def test_a_damaged_cache_is_recomputed(pictures, colours, tmp_path):
  find = lambda: image_index.build_index(colours, "colours", pictures, lambda line: None)
  find()
  (file,) = (tmp_path / "cache").rglob("*.npz")
  file.write_bytes(file.read_bytes()[:100])
  assert find().names == sorted(COLOURS) and colours.seen == 6


def test_links_out_of_the_folder_and_fifos_are_skipped_and_counted(
  pictures, colours, tmp_path, capsys
):
  Image.new("RGB", (8, 8), "red").save(tmp_path / "private.png")
  (pictures / "link.png").symlink_to(tmp_path / "private.png")
  (pictures / "alias.png").symlink_to("red.png")
  os.mkfifo(pictures / "fifo.jpg")
  found = image_index.build_index(colours, "colours", pictures, lambda line: None)
  assert found.names == ["alias.png", *sorted(COLOURS)]
  assert found.pictures.skipped == {OUTSIDE: 1, SPECIAL: 1}
  search.main(["--model=m", f"--images={pictures}", "red"])
  assert "skipped 1 FIFOs, devices or sockets, 1 links that leave" in capsys.readouterr().out


def test_names_are_escaped_on_the_console(pictures, colours, capfdbinary):
  os.rename(pictures / "red.png", os.fsencode(pictures) + b"/red\x1b[2J\xff.png")
  (pictures / "bad\x1b[2J.png").write_bytes(b"no")
  search.main(["--model=m", f"--images={pictures}", "red"])
  out = capfdbinary.readouterr().out
  assert b"red\\x1b[2J\\udcff.png" in out and b"bad\\x1b[2J.png" in out and b"\x1b" not in out
  assert colours.seen == 3
  search.main(["--model=m", f"--images={pictures}", "red"])  # The cache keeps such names.
  assert colours.seen == 3


def test_random_damage_to_the_cache_never_stops_a_search(pictures, colours, tmp_path):
  find = lambda: image_index.build_index(colours, "colours", pictures, lambda line: None)
  names = find().names
  (file,) = (tmp_path / "cache").rglob("*.npz")
  for damaged in damaged_bytes(file.read_bytes(), 200):
    file.write_bytes(damaged)
    assert set(find().names) <= set(names)


def test_an_interrupted_run_loses_at_most_one_block(pictures, colours, monkeypatch):
  monkeypatch.setattr(image_index, "_BLOCK", 1)
  calls = []

  def killed(share):
    calls.append(None)
    if len(calls) > 2:
      raise KeyboardInterrupt
    return Colours.encode_share(colours, share)

  monkeypatch.setattr(colours, "encode_share", killed)
  find = lambda: image_index.build_index(colours, "colours", pictures, lambda line: None)
  with pytest.raises(KeyboardInterrupt):
    find()
  calls.clear()
  assert find().names == sorted(COLOURS) and len(calls) == 1


def test_each_embedding_is_written_at_most_twice_and_parts_are_removed(
  pictures, colours, tmp_path, monkeypatch
):
  for k in range(20):
    Image.new("RGB", (8, 8), (k, 0, 0)).save(pictures / f"{k}.png")
  written, plain = [], image_index._write
  monkeypatch.setattr(image_index, "_BLOCK", 2)
  monkeypatch.setattr(
    image_index, "_write", lambda file, known: (written.append(len(known)), plain(file, known))[1]
  )
  image_index.build_index(colours, "colours", pictures, lambda line: None)
  assert sum(written) == 2 * 24 and written[-1] == 24
  assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
  written.clear()
  assert len(image_index.build_index(colours, "colours", pictures, print).names) == 23
  assert not written


def test_the_web_page_searches_the_index(pictures, colours, monkeypatch, capsys):
  pages = []
  serve = web_ui.SearchServer.serve

  def serving(page):
    pages.append(page)
    thread = threading.Thread(target=serve, args=(page,))
    thread.start()
    with request.urlopen(page.address + "find?q=blue") as answer:
      pages.append(json.loads(answer.read()))
    content = io.BytesIO()
    Image.new("RGB", (5, 5), "red").save(content, "PNG")
    with request.urlopen(page.address + "find", content.getvalue()) as answer:
      pages.append(json.loads(answer.read()))
    page.close()
    thread.join()
    raise KeyboardInterrupt

  monkeypatch.setattr(web_ui.SearchServer, "serve", serving)
  assert search.main(["--model=m", f"--images={pictures}", "--serve", "--port=0"]) == 0
  first = [page["results"][0]["name"] for page in pages[1:]]
  assert first == ["blue.webp", "red.png"] and pages[1]["total"] == 3
  assert f"Open {pages[0].address}" in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["a car"], "Which model\\? Set --model"),
    (["--model=m", "a car"], "Which images\\? Set --images"),
    (["--model=m", "--images=x"], "Search for what\\?.*exactly one"),
    (["--model=m", "--images=x", "a car", "--serve"], "Search for what\\?"),
    (["--model=m", "--images=x", "a car", "--top=many"], "--top=many is not "),
    (["--model=m", "--images=x", "a car", "--top=0"], "--top=0 is not "),
    (
      ["--model=m", "--images=x", "--query_image=nowhere.png"],
      "--query_image=nowhere.png cannot be opened: No such",
    ),
    (["--model=m", "--images=x", f"--query_image={__file__}"], "is not a readable image"),
    (["--model=m", "--images=nowhere", "a car"], "There is no folder .*nowhere"),
  ],
)
def test_an_invalid_command_is_rejected(colours, arguments, message):
  with pytest.raises(UserError, match=message):
    search.main(arguments)


def test_a_folder_without_readable_images_is_rejected(colours, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tmp_path / "empty"
  folder.mkdir()
  with pytest.raises(UserError, match="empty and its subfolders have no images; looked for .jpg"):
    image_index.build_index(colours, "colours", folder, print)
  (folder / "broken.jpg").write_bytes(b"no")
  with pytest.raises(UserError, match="None of the 1 images in .* can be read: broken.jpg"):
    image_index.build_index(colours, "colours", folder, print)
