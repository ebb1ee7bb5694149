"""The lock on a run's folder, which lets one trainer at a time write there.

`trainer.lock` names the process that trains, and its modification time is renewed every few
seconds. A lock outlives a process that is killed. It is then taken over: at once if the process ran
on this machine, and otherwise when it has not been renewed for a while.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import datetime
import errno
import json
import os
from pathlib import Path
import secrets
import socket
import threading
import time

import jax

from clip_jax.errors import UserError
from clip_jax.parallel import peer_watch
from clip_jax.parallel.agreement import on_all_processes

NAME = "trainer.lock"
RENEW = 15.0  # Seconds between two renewals.
# Seconds without a renewal after which a trainer on another machine is taken to be dead. Clients of
# a network file system may see a renewal a minute late.
EXPIRE = 120.0


@dataclasses.dataclass(frozen=True)
class Owner:
  """The process that holds a lock.

  Attributes:
    token: random, to tell locks apart.
    host: name of the machine.
    boot: random id of the machine's last boot; "" without /proc.
    namespace: id of the namespace of `pid`, which containers have their own of; "" without /proc.
    pid: process id.
    started: when the process started, in clock ticks since the boot; None without /proc.
    since: when it took the lock, in its local time.
  """

  token: str
  host: str
  boot: str
  namespace: str
  pid: int
  started: int | None
  since: str

  @classmethod
  def this_process(cls) -> "Owner":
    """Describes this process."""
    return cls(
      secrets.token_hex(8),
      socket.gethostname(),
      _read(Path("/proc/sys/kernel/random/boot_id")).strip(),
      _link(Path("/proc/self/ns/pid")),
      os.getpid(),
      (_stat(os.getpid()) or (None, None))[1],
      datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    )

  @classmethod
  def of(cls, path: Path) -> "Owner | None":
    """Returns the owner of a lock file; None if it is missing or damaged."""
    try:
      owner = cls(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
      return None
    texts = (owner.token, owner.host, owner.boot, owner.namespace, owner.since)
    valid = all(isinstance(x, str) and x.isprintable() for x in texts)
    return owner if valid and isinstance(owner.pid, int) and 0 < owner.pid < 2**31 else None

  def to_json(self) -> str:
    """Returns the content of the lock file."""
    return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

  def on_this_machine(self) -> bool:
    """Whether the process is, or was, one of those that this process can see."""
    here = Owner.this_process()
    return (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)

  def is_running(self) -> bool:
    """Whether the process still exists on this machine; its number may be that of another now."""
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return False
    except PermissionError:  # Another user's.
      pass
    stat = _stat(self.pid)
    if stat is None or self.started is None:
      return True
    return stat[1] == self.started and stat[0] not in "ZX"  # Zombies wait for their parent only.

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host}, since {self.since}"


def _stat(pid):
  """State and start time, in clock ticks since the boot, of a process; None without /proc."""
  # The second field is a name in parentheses, which may contain spaces and parentheses.
  fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
  return (fields[0], int(fields[19])) if fields else None


def _read(path):
  try:
    return path.read_text()
  except OSError:
    return ""


def _link(path):
  try:
    return os.readlink(path)
  except OSError:
    return ""


class RunLock:
  """Holds the lock on a folder while its context is open, in process 0 for all of a run's."""

  def __init__(
    self,
    workdir: Path,
    *,
    renew: float = RENEW,
    expire: float = EXPIRE,
    say: Callable[[str], None] = print,
  ):
    """Prepares the lock without taking it.

    Args:
      workdir: folder of the run; it must exist.
      renew: seconds between two renewals.
      expire: seconds after which a lock that is not renewed may be taken over.
      say: called with a line if that has to be waited for.
    """
    self.path, self._renew, self._expire, self._say = workdir / NAME, renew, expire, say
    self._owner: Owner | None = None
    self._other: Owner | None = None  # Who has taken the lock from this process.
    self._closing = threading.Event()

  def __enter__(self) -> "RunLock":
    """Takes the lock.

    Raises:
      UserError: another trainer holds it; raised on every process.
    """
    on_all_processes(lambda: self._take() if jax.process_index() == 0 else None)
    return self

  def __exit__(self, *_: object) -> None:
    """Removes the lock, unless another trainer has taken it over."""
    if self._owner is None:
      return
    peer_watch.cleanups.remove(self._release)
    self._closing.set()
    self._renewals.join()
    self._release()
    self._owner = None

  def _release(self):
    if Owner.of(self.path) == self._owner:
      self.path.unlink(missing_ok=True)

  def check(self) -> None:
    """Checks that this run still holds the lock, before something is written.

    Raises:
      UserError: it was suspended for so long that another trainer has taken the lock over.
    """
    on_all_processes(self._check)

  def _check(self):
    if self._owner is None:
      return
    found = Owner.of(self.path)
    self._other = found if found and found != self._owner else self._other
    if self._other:
      raise UserError(
        f"This run stood still for a while, and {self._other} took over {self.path.parent}. It "
        "stops without saving, so that there is one trainer only."
      )

  def _take(self):
    owner = Owner.this_process()
    mine = self.path.with_name(f".{NAME}.{owner.token}")
    try:
      mine.write_text(owner.to_json())
      while not _create(mine, self.path):
        stale = self._stale_owner()
        if self.path.exists() and self._replace(stale, mine):
          break
    finally:
      mine.unlink(missing_ok=True)
    self._owner = owner
    peer_watch.cleanups.append(self._release)
    self._renewals = threading.Thread(target=self._renew_lock, name="run lock", daemon=True)
    self._renewals.start()

  def _stale_owner(self):
    """Returns the owner once the lock is known to be stale; raises if the owner lives."""
    first, said = _modified(self.path), False
    while (last := _modified(self.path)) is not None:
      owner = Owner.of(self.path)
      here = owner is not None and owner.on_this_machine()
      if last != first or (here and owner.is_running()):
        raise UserError(
          f"{self.path.parent} is in use: {owner or 'another process'} trains there. Wait until it "
          "ends, stop it, or choose another --workdir."
        )
      if here or self._now() - last > self._expire:
        return owner
      if not said:
        self._say(
          f"{self.path} is held by {owner or 'an unknown process'}; waiting up to "
          f"{self._expire:.0f} s to see whether it still runs."
        )
        said = True
      time.sleep(min(1.0, self._renew / 4))
    return None

  def _now(self):
    """The time by the clock of the file system, in seconds."""
    probe = self.path.with_name(f".{NAME}.{secrets.token_hex(8)}")
    probe.touch()
    try:
      return probe.stat().st_mtime
    finally:
      probe.unlink(missing_ok=True)

  def _replace(self, stale, mine):
    """Puts this process's lock in place of a stale one; False if another process does that."""
    # One process only, of those that have found the same lock stale, can create this file.
    turn = self.path.with_name(f".{NAME}.after.{stale.token if stale else 'unknown'}")
    if not _create(mine, turn):
      if self._now() - (_modified(turn) or 0) > self._expire:  # Killed during its turn.
        turn.unlink(missing_ok=True)
      time.sleep(0.05)
      return False
    try:
      if Owner.of(self.path) != stale:  # It had its turn before this process.
        return False
      os.replace(mine, self.path)
      return True
    finally:
      turn.unlink(missing_ok=True)

  def _renew_lock(self):
    while not self._closing.wait(self._renew):
      with contextlib.suppress(OSError):
        if Owner.of(self.path) == self._owner:
          os.utime(self.path)


def _create(content: Path, path: Path) -> bool:
  """Creates a file with the content of another, unless it exists; returns whether it did not."""
  try:
    os.link(content, path)
    return True
  except FileExistsError:
    return False
  except OSError as error:
    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
      raise
  try:  # A file system without hard links.
    with path.open("x") as file:
      file.write(content.read_text())
    return True
  except FileExistsError:
    return False


def _modified(path):
  try:
    return path.stat().st_mtime
  except OSError:
    return None
