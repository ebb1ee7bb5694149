"""Files that are written whole or not at all."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import secrets
import stat
from typing import IO, Any

TEMPORARY = ".tmp"  # Ending of temporary files, which are hidden and next to the file they replace.


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
  """Yields the path of a temporary file that replaces `path` when the block ends without an error.

  A reader, or a process killed at any moment, sees the old file or the new one, never a part. The
  temporary file is in the same folder, so that the replacement is a rename. The new file has the
  permissions of the old one, if there is one; a link stays a link. Something that cannot be
  replaced, such as a pipe or /dev/stdout, is yielded itself.

  Raises:
    OSError: the folder cannot be written to, or the disk is full; the temporary file is removed.
  """
  path = Path(path)
  if _irreplaceable(path):
    yield path
    return
  path = Path(os.path.realpath(path))
  # Not longer than file systems permit, whatever the length of the name.
  temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}{TEMPORARY}")
  os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
  try:
    mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    if stat.S_IMODE(temporary.stat().st_mode) != mode:
      temporary.chmod(mode)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
  """Opens a temporary file that replaces `path` when the block ends without an error.

  See `atomic_path`.

  Args:
    path: the file to write.
    mode: "w" for text in UTF-8, without conversion of line ends; "wb" for bytes.
  """
  encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
  with (
    atomic_path(path) as temporary,
    open(temporary, mode, encoding=encoding, newline=newline) as file,
  ):
    yield file


def write_atomically(path: Path | str, content: str | bytes) -> None:
  """Writes a whole file atomically, see `atomic_path`."""
  with atomic_write(path, "wb" if isinstance(content, bytes) else "w") as file:
    file.write(content)


def is_full_disk(error: BaseException) -> bool:
  """Whether an error says that a disk is full, or that a quota or the limit of a file is reached.

  Libraries written in C++ raise other exceptions than OSError, with the system's words in them, and
  NumPy an OSError that has no number.
  """
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in codes
  words = (*map(os.strerror, codes), "requested and")  # "1024 requested and 992 written"
  return any(one in str(error) for one in words)


def check_writable(path: Path | str) -> None:
  """Raises the OSError that writing `path` atomically would raise now; `path` does not change."""
  path = Path(path)
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  if _irreplaceable(path):
    return
  probe = path.parent / f".{secrets.token_hex(4)}{TEMPORARY}"
  os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
  probe.unlink()


def _irreplaceable(path: Path) -> bool:
  return (path.exists() and not path.is_file()) or os.path.abspath(path).startswith("/dev/")
