"""Files are written whole or not at all: kills, full disks, permissions, links and pipes."""

import errno
import io
import os
from pathlib import Path
import re
import signal
import stat
import subprocess
import sys
import threading

import pytest

from clip_jax.cli.flags import check_output
from clip_jax.errors import UserError
from clip_jax.files import atomic_path, atomic_write, check_writable, write_atomically

PACKAGE = Path(__file__).parents[1] / "clip_jax"


@pytest.fixture
def umask():
  """Sets the process's umask for a test."""
  before = os.umask(0o022)
  yield os.umask
  os.umask(before)


def mode(path):
  return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", ["", "ä\nb\r\n", b"\x00\xff\r\n", "x" * 10**6])
@pytest.mark.parametrize("before", [None, "the old content, which is longer"])
def test_the_content_is_written_exactly(tmp_path, content, before):
  path = tmp_path / "a.txt"
  if before:
    path.write_text(before)
  write_atomically(path, content)
  assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, ".hidden", "a b'\"*?[x].json"])
def test_any_name_that_the_file_system_permits(tmp_path, name):
  write_atomically(tmp_path / name, "1")
  assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_after_an_error_the_old_file_is_there_and_no_temporary_file(tmp_path, error):
  path = tmp_path / "a.txt"
  path.write_text("old")
  with pytest.raises(type(error)), atomic_write(path) as file:
    file.write("new")
    file.flush()
    raise error
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]
  with pytest.raises(type(error)), atomic_path(tmp_path / "b.txt") as temporary:
    temporary.write_text("new")
    raise error
  assert os.listdir(tmp_path) == ["a.txt"]


def test_the_file_appears_when_the_block_ends(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("old")
  with atomic_write(path) as file:
    file.write("new")
    file.flush()
    assert path.read_text() == "old"
    (other,) = {*os.listdir(tmp_path)} - {"a.txt"}
    assert other.startswith(".")  # So that patterns such as *.txt do not match it.
    assert other.endswith(".tmp")
  assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
  path = tmp_path / "a.txt"
  path.write_text("old")

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  if step == "write":

    class Full(io.FileIO):
      write = full

    monkeypatch.setattr("builtins.open", lambda file, *_, **__: Full(file, "w"))
  else:
    monkeypatch.setattr(os, step, full)
  with pytest.raises(OSError, match="No space left"):
    write_atomically(path, b"new")
  monkeypatch.undo()
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_the_bytes_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
  order = []
  sync, replace = os.fsync, os.replace

  def synced(descriptor):
    order.append(("fsync", os.fstat(descriptor).st_size))
    sync(descriptor)

  def replaced(old, new):
    order.append(("replace", os.stat(old).st_size))
    replace(old, new)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(os, "replace", replaced)
  write_atomically(tmp_path / "a.txt", "12345")
  assert order == [("fsync", 5), ("replace", 5)]


KILLED = """
import sys
from clip_jax.files import atomic_write
while True:
  for letter in "ab":
    with atomic_write(sys.argv[1]) as file:
      for _ in range(50):
        file.write(letter * 20_000)
      print(letter, flush=True)
"""


@pytest.mark.parametrize("round_", range(5))
def test_a_killed_writer_leaves_one_whole_file(tmp_path, round_):
  path = tmp_path / "a.txt"
  with subprocess.Popen(
    [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
  ) as writer:
    for _ in range(2 + round_):
      assert writer.stdout.readline()
    threading.Event().wait(0.003 * round_)
    writer.send_signal(signal.SIGKILL)
  content = path.read_text()
  assert len(content) == 10**6
  assert len(set(content)) == 1
  write_atomically(path, "next")  # What the kill left is not in the way.
  assert path.read_text() == "next"


def test_readers_see_whole_files_while_several_threads_write(tmp_path):
  path = tmp_path / "a.txt"
  write_atomically(path, "0" * 10_000)
  done = threading.Event()

  def write(letter):
    while not done.is_set():
      write_atomically(path, letter * 10_000)

  threads = [threading.Thread(target=write, args=(letter,)) for letter in "123"]
  for thread in threads:
    thread.start()
  contents = {path.read_text() for _ in range(300)}
  done.set()
  for thread in threads:
    thread.join()
  assert all(len(content) == 10_000 and len(set(content)) == 1 for content in contents)
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask, expected", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_open_gives(tmp_path, umask, mask, expected):
  umask(mask)
  write_atomically(tmp_path / "a", "1")
  with atomic_path(tmp_path / "b") as temporary:  # As a library that makes private files.
    temporary.unlink()
    os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
  assert mode(tmp_path / "a") == mode(tmp_path / "b") == expected
  assert os.umask(mask) == mask


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, permissions):
  path = tmp_path / "a"
  path.write_text("old")
  path.chmod(permissions)
  write_atomically(path, "new")
  assert path.read_text() == "new"
  assert mode(path) == permissions


def test_a_link_stays_a_link(tmp_path):
  (tmp_path / "there").mkdir()
  target, link = tmp_path / "there/a.txt", tmp_path / "link.txt"
  link.symlink_to(target)
  for content in ("made", "replaced"):
    write_atomically(link, content)
    assert link.is_symlink()
    assert target.read_text() == content
  assert os.listdir(tmp_path / "there") == ["a.txt"]


def test_a_pipe_and_a_device_are_written_directly(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  found = []
  reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
  reader.start()
  write_atomically(pipe, "text")
  reader.join()
  assert found == ["text"]
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  write_atomically("/dev/null", "text")
  assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("where", ["pipe", "file"])
def test_standard_output_is_written_directly(tmp_path, where):
  code = (
    "from clip_jax.files import write_atomically\n"
    "print('before', flush=True)\n"
    "write_atomically('/dev/stdout', 'json\\n')\n"
  )
  with (tmp_path / "out.txt").open("a+") as file:  # As of a shell's >>.
    out = file if where == "file" else subprocess.PIPE
    ran = subprocess.run([sys.executable, "-c", code], stdout=out, text=True, check=True)
    file.seek(0)
    text = file.read() if where == "file" else ran.stdout
  assert text.endswith("json\n")
  assert where == "file" or text == "before\njson\n"


@pytest.mark.parametrize(
  "path, reason",
  [("missing/a.json", "No such file"), ("file/a.json", "Not a directory"), ("", "Is a directory")],
)
def test_a_path_that_cannot_be_written_is_found_before_the_work(tmp_path, path, reason):
  (tmp_path / "file").write_text("")
  path = tmp_path / path
  with pytest.raises(OSError, match=reason):
    check_writable(path)
  with pytest.raises(OSError, match=reason):
    write_atomically(path, "1")
  message = rf"--out={re.escape(str(path))} cannot be written: {reason}"
  with pytest.raises(UserError, match=message):
    check_output(str(path), "--out")


def test_the_check_changes_nothing(tmp_path):
  path = tmp_path / "a.json"
  check_output(None, "--out")
  check_output(str(path), "--out")
  assert not os.listdir(tmp_path)
  path.write_text("old")
  check_output(str(path), "--out")
  assert os.listdir(tmp_path) == ["a.json"]
  assert path.read_text() == "old"
  check_output("/dev/stdout", "--out")


def test_no_other_module_renames_or_writes_whole_files():
  by_hand = re.compile(
    r"os\.replace|os\.rename|\.rename\(|write_text|write_bytes|json\.dump\("
    r"|(?<!file\.)\bopen\([^)]*[\"']w"  # file.open is a member of a zip file.
  )
  users = {
    str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if by_hand.search(p.read_text())
  }
  # Locks must exist at once, and a damaged checkpoint is moved as a folder.
  locks = {"study/run_result.py", "training/run_lock.py", "training/checkpoint.py"}
  assert users == {"files.py", *locks}
