"""Tests of reading files of unknown origin: FIFOs, sizes, malformed JSON."""

import io
import json
import os
import socket

import pytest

from clip_jax.data import untrusted
from clip_jax.data.untrusted import NotAFile, parse_json, read_json, read_regular, text_lines
from clip_jax.errors import UserError
from mutations import damaged_json


def test_only_regular_files_are_read(tmp_path):
  (tmp_path / "file").write_bytes(b"x")
  (tmp_path / "link").symlink_to("file")
  assert read_regular(tmp_path / "file", 1) == read_regular(tmp_path / "link", 1) == b"x"
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "folder").mkdir()
  server = socket.socket(socket.AF_UNIX)
  server.bind(str(tmp_path / "socket"))
  for path in (tmp_path / "fifo", tmp_path / "folder", tmp_path / "socket", "/dev/zero"):
    with pytest.raises(NotAFile):
      read_regular(path, 10**9)
  with pytest.raises(FileNotFoundError):
    read_regular(tmp_path / "none", 1)
  server.close()


def test_a_fifo_that_replaces_a_file_after_the_check_is_not_waited_for(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "file").touch()
  regular = os.stat(tmp_path / "file")
  monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
  with pytest.raises(NotAFile):
    read_regular(tmp_path / "fifo", 1)


def test_a_file_that_is_too_large_is_rejected(tmp_path, monkeypatch):
  (tmp_path / "file").write_bytes(b"[1234]")
  with pytest.raises(OSError, match="more than 5 bytes"):
    read_regular(tmp_path / "file", 5)
  monkeypatch.setattr(untrusted, "MAX_JSON", 5)
  with pytest.raises(UserError, match="more than 5 bytes"):
    read_json(tmp_path / "file", list)
  with pytest.raises(UserError, match="more than 5 bytes"):
    parse_json(b"[1234]", "x", list)


def test_a_line_that_is_too_long_is_rejected(monkeypatch):
  monkeypatch.setattr(untrusted, "MAX_LINE", 3)
  lines = text_lines(io.StringIO("ab\ncde"))
  assert list(lines) == ["ab\n", "cde"]
  with pytest.raises(ValueError, match="line 2 has more than 3"):
    list(text_lines(io.StringIO("ab\ncdef")))


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\xff", b"7", b"[]", b"[" * 10**6, b"9" * 10**5, b'{"x":' * 10**5]
)
def test_malformed_json_is_one_message(tmp_path, content):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(UserError, match=r"x\.json .*Try again\."):
    read_json(tmp_path / "x.json", advice="Try again.")


def test_random_damage_to_json_gives_a_dict_or_a_message():
  content = json.dumps({"a": [1, {"b": "c"}], "d": None, "e": 1.5}).encode()
  refused = 0
  for damaged in damaged_json(content, 200):
    try:
      assert isinstance(parse_json(damaged, "x"), dict)
    except UserError:
      refused += 1
  assert 50 < refused < 200
