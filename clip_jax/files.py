"""Files that are written whole or not at all."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import tempfile
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
  """Opens a temporary file that replaces `path` when the block ends without an error.

  A reader, or a process killed at any moment, sees the old file or the new one, never a part. The
  temporary file is in the same folder, so that the replacement is a rename.

  Args:
    mode: "w" for text in UTF-8, "wb" for bytes.

  Raises:
    OSError: the folder cannot be written to, or the disk is full; the temporary file is removed.
  """
  path = Path(path)
  descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
  try:
    with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes files that only their owner can read.
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def write_atomically(path: Path | str, content: str | bytes) -> None:
  """Writes a whole file atomically, see `atomic_write`."""
  with atomic_write(path, "wb" if isinstance(content, bytes) else "w") as file:
    file.write(content)


def umask() -> int:
  """Returns the process's umask, the permissions that new files do not get."""
  # The only portable way to read it is to set it.
  mask = os.umask(0)
  os.umask(mask)
  return mask
