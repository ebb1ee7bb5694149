"""Lists folders that anyone may have filled, and skips what is not a file of the folder itself."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
import logging
import os

from clip_jax.cli.formatting import printable

_log = logging.getLogger(__name__)
OUTSIDE = "links that leave the folder"
BROKEN = "broken links"
SPECIAL = "FIFOs, devices or sockets"
UNREADABLE = "folders that cannot be read"


def is_inside(root: str, path: str) -> bool:
  """Whether `path` is still inside `root`, a folder's real path, when all links are followed."""
  try:
    real = os.path.realpath(path)
  except (OSError, ValueError):  # A name with a NUL or half a surrogate pair.
    return False
  return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def entries(
  folder: str,
  root: str | None,
  skipped: Counter,
  *,
  suffixes: tuple[str, ...] = (),
  folders: bool = False,
) -> Iterator[os.DirEntry]:
  """Yields files and folders directly in a folder, sorted by name, except for hidden ones.

  Args:
    folder: the folder to list.
    root: real path of the folder that links must not leave; None to follow all links.
    skipped: receives the number of entries that were skipped, by reason.
    suffixes: endings of the names of files to yield, in lower case; () for no files.
    folders: whether to yield folders.
  """
  try:
    there = sorted(os.scandir(folder), key=lambda e: e.name)
  except OSError:
    skipped[UNREADABLE] += 1
    return
  for entry in there:
    if entry.name.startswith("."):
      continue
    reason, is_folder = examine(entry, root)
    if folders if is_folder else entry.name.lower().endswith(suffixes):
      if reason:
        skipped[reason] += 1
      else:
        yield entry


def examine(entry: os.DirEntry, root: str | None) -> tuple[str | None, bool]:
  """Returns (reason to skip the entry or None, whether it is a folder); see `entries`."""
  if entry.is_symlink():  # Only links need their real path: listing a folder gave the other types.
    if not os.path.exists(entry.path):
      return BROKEN, False
    if root is not None and not is_inside(root, entry.path):
      return OUTSIDE, entry.is_dir()
  if entry.is_dir():
    return None, True
  return (None if entry.is_file() else SPECIAL), False


def walk(root: str, suffixes: Iterable[str]) -> tuple[list[str], Counter]:
  """Lists files in a folder and its subfolders; ignores hidden ones and links to folders.

  Args:
    root: the folder.
    suffixes: endings of the names to list, in lower case.

  Returns:
    (paths relative to `root`, sorted; number of skipped entries by reason).
  """
  found, skipped, suffixes, real = [], Counter(), tuple(suffixes), os.path.realpath(root)
  waiting = [""]
  while waiting:
    inner = waiting.pop()
    for entry in entries(os.path.join(root, inner), real, skipped, suffixes=suffixes, folders=True):
      path = os.path.join(inner, entry.name)
      if entry.is_dir():
        if not entry.is_symlink():  # A link to a folder inside would list its files twice.
          waiting.append(path)
      else:
        found.append(path)
  return sorted(found), skipped


def describe(skipped: Mapping[str, int]) -> str:
  """Returns for example "skipped 2 links that leave the folder, 1 broken links"."""
  return "skipped " + ", ".join(f"{n:,} {reason}" for reason, n in sorted(skipped.items()))


def warn_skipped(folder: str, skipped: Mapping[str, int], advice: str = "") -> None:
  """Logs a warning if anything was skipped."""
  if skipped:
    _log.warning("%s: %s. %s", printable(folder), describe(skipped), advice)
