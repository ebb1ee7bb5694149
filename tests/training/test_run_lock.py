"""One trainer at a time in a folder: refusals, takeovers and races."""

import dataclasses
import errno
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest

from clip_jax.errors import UserError
from clip_jax.training import run_lock
from clip_jax.training.run_lock import NAME, Owner, RunLock

ROOT = Path(__file__).parents[2]
HOLD = """
import pathlib, sys, time
from clip_jax.training.run_lock import RunLock
with RunLock(pathlib.Path(sys.argv[1]), renew=0.1):
  print("held", flush=True)
  sys.stdin.read()
"""


def start_holder(workdir):
  """Starts a process that holds the lock until its stdin is closed."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(workdir)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  line = process.stdout.readline()
  assert line == "held\n", line + process.communicate()[0]
  return process


def write_lock(workdir, **changes):
  """Writes the lock of another owner."""
  owner = dataclasses.replace(Owner.this_process(), **changes)
  (workdir / NAME).write_text(owner.to_json())
  return owner


def elsewhere(workdir, **changes):
  """Writes the lock of a process on another machine."""
  return write_lock(workdir, host="elsewhere", boot="other", pid=1, **changes)


def test_the_lock_is_there_while_it_is_held_and_nothing_is_left(tmp_path):
  with RunLock(tmp_path) as lock:
    owner = Owner.of(tmp_path / NAME)
    assert owner.pid == os.getpid() and owner.on_this_machine() and owner.is_running()
    assert json.loads((tmp_path / NAME).read_text())["host"] == owner.host
    lock.check()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
  assert not list(tmp_path.iterdir())
  with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
    _ = 1 / 0
  assert not list(tmp_path.iterdir())


def test_a_second_trainer_is_refused_and_a_killed_one_is_taken_over_at_once(tmp_path):
  process = start_holder(tmp_path)
  first = Owner.of(tmp_path / NAME)
  with pytest.raises(UserError) as refused, RunLock(tmp_path):
    pass
  for part in (str(tmp_path), f"process {process.pid} on {first.host}", first.since, "--workdir"):
    assert part in str(refused.value)
  assert Owner.of(tmp_path / NAME) == first
  process.send_signal(signal.SIGKILL)
  while run_lock._stat(process.pid)[0] != "Z":
    time.sleep(0.01)
  begun = time.monotonic()
  with RunLock(tmp_path):  # Although the dead process is still there, as a zombie.
    assert Owner.of(tmp_path / NAME).pid == os.getpid()
  assert time.monotonic() - begun < 2
  process.wait()
  assert not list(tmp_path.iterdir())
  process.stdin.close()
  process.stdout.close()


def test_a_trainer_that_ends_releases_the_lock(tmp_path):
  process = start_holder(tmp_path)
  process.communicate("")
  assert process.returncode == 0 and not list(tmp_path.iterdir())


def test_one_process_does_not_train_twice_in_a_folder(tmp_path):
  with RunLock(tmp_path), pytest.raises(UserError, match=f"in use: process {os.getpid()} on"):
    RunLock(tmp_path).__enter__()


def test_a_number_that_belongs_to_another_process_now_is_stale(tmp_path):
  started = Owner.this_process().started
  write_lock(tmp_path, started=started - 1)
  with RunLock(tmp_path):
    pass
  write_lock(tmp_path, pid=2**31 - 1)
  with RunLock(tmp_path):
    pass


def test_a_process_that_cannot_be_looked_at_counts_as_alive(tmp_path, monkeypatch):
  """As another user's process does if /proc hides it."""

  def kill(pid, number):
    raise PermissionError(errno.EPERM, "Operation not permitted")

  owner = write_lock(tmp_path, pid=4242)
  monkeypatch.setattr(run_lock.os, "kill", kill)
  monkeypatch.setattr(run_lock, "_stat", lambda pid: None)
  assert owner.is_running()


def test_without_proc_the_number_of_the_process_decides(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, "_stat", lambda pid: None)
  monkeypatch.setattr(run_lock, "_read", lambda path: "")
  monkeypatch.setattr(run_lock, "_link", lambda path: "")
  owner = Owner.this_process()
  assert (owner.boot, owner.namespace, owner.started) == ("", "", None)
  with RunLock(tmp_path), pytest.raises(UserError, match="in use"):
    RunLock(tmp_path).__enter__()
  write_lock(tmp_path, pid=2**31 - 1)
  with RunLock(tmp_path):
    pass


@pytest.mark.parametrize("change", [{"namespace": "other"}, {"boot": "other"}, {"host": "other"}])
def test_numbers_of_other_containers_boots_and_machines_mean_nothing_here(tmp_path, change):
  owner = write_lock(tmp_path, pid=2**31 - 1, **change)
  assert not owner.on_this_machine()


def test_another_machine_that_renews_its_lock_is_refused(tmp_path):
  owner, done = elsewhere(tmp_path), threading.Event()

  def renew():
    while not done.wait(0.05):
      os.utime(tmp_path / NAME)

  thread = threading.Thread(target=renew)
  thread.start()
  said = []
  try:
    with pytest.raises(UserError, match="process 1 on elsewhere, since"):
      RunLock(tmp_path, renew=0.2, expire=20, say=said.append).__enter__()
  finally:
    done.set()
    thread.join()
  assert len(said) == 1 and "elsewhere" in said[0] and "waiting up to 20 s" in said[0]
  assert Owner.of(tmp_path / NAME) == owner


def test_another_machine_that_no_longer_renews_its_lock_is_taken_over(tmp_path):
  elsewhere(tmp_path)
  said, begun = [], time.monotonic()
  with RunLock(tmp_path, renew=0.1, expire=0.6, say=said.append):
    assert 0.5 < time.monotonic() - begun < 5 and len(said) == 1
    assert Owner.of(tmp_path / NAME).pid == os.getpid()
  elsewhere(tmp_path)
  os.utime(tmp_path / NAME, (0, time.time() - 3600))
  said.clear()
  with RunLock(tmp_path, say=said.append):  # By the default times.
    assert not said


def test_a_lock_is_renewed_while_it_is_held(tmp_path):
  with RunLock(tmp_path, renew=0.05):
    os.utime(tmp_path / NAME, (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / NAME).stat().st_mtime == 0 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert time.time() - (tmp_path / NAME).stat().st_mtime < 5


def test_a_trainer_whose_lock_was_taken_over_saves_nothing_more(tmp_path):
  with RunLock(tmp_path, renew=0.02) as lock:
    lock.check()
    other = elsewhere(tmp_path)
    os.utime(tmp_path / NAME, (0, 0))
    time.sleep(0.2)
    assert (tmp_path / NAME).stat().st_mtime == 0  # It renews its own lock only.
    for _ in range(2):
      with pytest.raises(UserError, match="process 1 on elsewhere.* took over .*without saving"):
        lock.check()
  assert Owner.of(tmp_path / NAME) == other  # And removes its own only.


@pytest.mark.parametrize(
  "content",
  [b"", b"{", b"[]", b"{}", b"\x00" * 9, b'{"pid": 3}', "pid", "token", "host"],
  ids=str,
)
def test_a_damaged_lock_expires_like_that_of_another_machine(tmp_path, content):
  if isinstance(content, str):  # A field that is no text or number of a process.
    changes = {"pid": 0} if content == "pid" else {content: "\x1b[2J"}
    content = dataclasses.replace(Owner.this_process(), **changes).to_json().encode()
  path = tmp_path / NAME
  path.write_bytes(content)
  assert Owner.of(path) is None
  said = []
  with RunLock(tmp_path, renew=0.1, expire=0.4, say=said.append):
    assert "an unknown process" in said[0]


def test_the_lock_works_without_hard_links(tmp_path, monkeypatch):
  def link(a, b):
    raise OSError(errno.EPERM, "Operation not permitted")

  monkeypatch.setattr(run_lock.os, "link", link)
  with RunLock(tmp_path), pytest.raises(UserError, match="in use"):
    RunLock(tmp_path).__enter__()
  write_lock(tmp_path, pid=2**31 - 1)
  with RunLock(tmp_path):
    assert Owner.of(tmp_path / NAME).pid == os.getpid()
  assert not list(tmp_path.iterdir())


def test_a_process_killed_during_its_takeover_does_not_stop_the_next_one(tmp_path):
  stale = write_lock(tmp_path, pid=2**31 - 1)
  turn = tmp_path / f".{NAME}.after.{stale.token}"
  turn.write_text(stale.to_json())
  os.utime(turn, (0, 0))
  with RunLock(tmp_path):
    pass
  assert not list(tmp_path.iterdir())


CONTEND = """
import json, pathlib, sys, time
from clip_jax.errors import UserError
from clip_jax.training.run_lock import RunLock
print("ready", flush=True)
begin = json.loads(sys.stdin.readline())
for i, workdir in enumerate(map(pathlib.Path, sys.argv[1:])):
  time.sleep(max(0, begin + 0.3 * i - time.time()))
  try:
    with RunLock(workdir) as lock:
      (workdir / "inside").touch(exist_ok=False)  # Fails if another process is inside.
      time.sleep(0.02)
      lock.check()
      (workdir / "inside").unlink()
    print("held", flush=True)
  except UserError:
    print("refused", flush=True)
"""


def test_of_several_that_start_at_once_one_at_a_time_holds_the_lock(tmp_path):
  folders = [tmp_path / str(i) for i in range(20)]
  for i, folder in enumerate(folders):
    folder.mkdir()
    if i % 2:
      write_lock(folder, pid=2**31 - 1)
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", CONTEND, *map(str, folders)],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for _ in range(4)
  ]
  assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
  begin = json.dumps(time.time() + 0.5) + "\n"
  for process in processes:
    process.stdin.write(begin)
    process.stdin.flush()
  outputs = [process.communicate()[0].split() for process in processes]
  for folder, said in zip(folders, zip(*outputs, strict=True), strict=True):
    assert set(said) <= {"held", "refused"} and "held" in said, said
    assert not list(folder.iterdir())
