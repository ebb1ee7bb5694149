"""Tests of listing folders that have links, FIFOs and unreadable parts."""

from collections import Counter
import os
import socket

import pytest

from clip_jax.data import folder_walk
from clip_jax.data.folder_walk import BROKEN, OUTSIDE, SPECIAL, is_inside, walk
from clip_jax.data.paths import matching
from clip_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """A folder with everything that may be in one; `tmp_path`/private is outside it."""
  root, private = tmp_path / "root", tmp_path / "private"
  for name in ("root/deep/er", "private"):
    (tmp_path / name).mkdir(parents=True)
  for name in ("root/a.jpg", "root/deep/b.JPG", "root/deep/er/c.png", "root/n.txt", "root/.h.jpg"):
    (tmp_path / name).write_bytes(b"x")
  (private / "secret.jpg").write_bytes(b"secret")
  (root / "inside.jpg").symlink_to("deep/b.JPG")
  (root / "loop").symlink_to(".")
  (root / "deep/outside.jpg").symlink_to("../../private/secret.jpg")
  (root / "absolute.jpg").symlink_to(private / "secret.jpg")
  (root / "outside").symlink_to(private)
  (root / "broken.jpg").symlink_to("nowhere")
  (root / "broken.txt").symlink_to("nowhere")
  (root / "device.jpg").symlink_to("/dev/zero")
  os.mkfifo(root / "fifo.jpg")
  os.mkfifo(root / "fifo.txt")
  server = socket.socket(socket.AF_UNIX)
  server.bind(str(root / "s.jpg"))
  yield root
  server.close()


def test_links_out_of_the_folder_and_special_files_are_skipped_and_counted(folder):
  files, skipped = walk(str(folder), (".jpg", ".png"))
  assert files == ["a.jpg", "deep/b.JPG", "deep/er/c.png", "inside.jpg"]
  assert skipped == {OUTSIDE: 4, BROKEN: 1, SPECIAL: 2}


def test_a_link_to_the_folder_itself_may_be_walked(folder, tmp_path):
  (tmp_path / "alias").symlink_to(folder)
  assert (
    walk(str(tmp_path / "alias"), (".jpg", ".png"))[0] == walk(str(folder), (".jpg", ".png"))[0]
  )


def test_a_folder_with_a_similar_name_is_outside(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "ab").mkdir()
  (tmp_path / "a/link").symlink_to("../ab")
  real = os.path.realpath(tmp_path / "a")
  assert not is_inside(real, str(tmp_path / "a/link"))
  assert is_inside(real, str(tmp_path / "a/none")) and is_inside("/", "/etc")
  assert not is_inside(real, str(tmp_path / "a/\0")) and not is_inside(real, f"{real}/\ud800")


def test_a_folder_that_cannot_be_read_is_counted(folder, monkeypatch):
  scandir = os.scandir

  def refused(path):
    if str(path).endswith("er"):
      raise PermissionError(13, "Permission denied")
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refused)
  files, skipped = walk(str(folder), (".jpg", ".png"))
  assert "deep/er/c.png" not in files and skipped[folder_walk.UNREADABLE] == 1


def test_matching_skips_in_a_folder_but_follows_a_pattern(folder, tmp_path):
  skipped = Counter()
  files = matching(str(folder), (".jpg",), skipped)[1]
  assert [os.path.basename(f) for f in files] == ["a.jpg", "inside.jpg"]
  assert skipped == {OUTSIDE: 2, BROKEN: 1, SPECIAL: 2}
  assert str(folder / "absolute.jpg") in matching(f"{folder}/*.jpg")[1]
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked/x.tar").symlink_to(folder / "n.txt")
  with pytest.raises(UserError, match="skipped 1 links that leave the folder; to follow.* pattern"):
    matching(str(tmp_path / "linked"), (".tar",))
