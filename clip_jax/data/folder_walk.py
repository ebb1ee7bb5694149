"""Lists folders that anyone may have filled, and skips what is not a file of the folder itself."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import logging
import os

from clip_jax.cli.formatting import printable
from clip_jax.data.outcomes import Dropped, NotAskedFor

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


@dataclasses.dataclass(frozen=True)
class Survey:
  """Everything in a folder and its subfolders.

  Attributes:
    files: paths of the files relative to the folder, sorted, without hidden ones.
    top_folders: names of the folders directly in the folder, sorted, without hidden ones.
    ignored: number of hidden entries, and of links to folders that are listed anyway.
    skipped: number of links and special files that are not read, by reason.
  """

  files: list[str]
  top_folders: list[str]
  ignored: Counter
  skipped: Counter

  @property
  def found(self) -> int:
    """Number of files, and of other entries that are left out."""
    return len(self.files) + self.ignored.total() + self.skipped.total()

  def outcomes(self) -> list[Dropped | NotAskedFor]:
    """Returns what became of the entries that are not in `files`."""
    return [
      *(NotAskedFor(kind, n) for kind, n in sorted(self.ignored.items())),
      *(Dropped(reason) for reason, n in sorted(self.skipped.items()) for _ in range(n)),
    ]


def survey(root: str, follow_links: bool = False) -> Survey:
  """Lists a folder and its subfolders.

  Links to files are followed. Links to folders are followed only if they leave the folder and
  `follow_links` is set, because the files of other folders are listed anyway.

  Args:
    root: the folder.
    follow_links: whether to follow links that leave the folder.
  """
  real = os.path.realpath(root)
  made = Survey([], [], Counter(), Counter())
  waiting, visited = [""], {real}
  while waiting:
    inner = waiting.pop()
    try:
      there = list(os.scandir(os.path.join(root, inner)))
    except OSError:
      made.skipped[UNREADABLE] += 1
      continue
    for entry in there:
      if entry.name.startswith("."):
        made.ignored["hidden"] += 1
        continue
      reason, is_folder = examine(entry, None if follow_links else real)
      path = os.path.join(inner, entry.name)
      if reason:
        made.skipped[reason] += 1
      elif not is_folder:
        made.files.append(path)
      elif entry.is_symlink() and (
        is_inside(real, entry.path) or os.path.realpath(entry.path) in visited
      ):
        made.ignored["links to folders"] += 1
      else:
        visited.add(os.path.realpath(entry.path))  # Links may form a cycle.
        waiting.append(path)
        made.top_folders.extend([] if inner else [entry.name])
  made.files.sort()
  made.top_folders.sort()
  return made


def describe(skipped: Mapping[str, int]) -> str:
  """Returns for example "skipped 2 links that leave the folder, 1 broken links"."""
  return "skipped " + ", ".join(f"{n:,} {reason}" for reason, n in sorted(skipped.items()))


def warn_skipped(folder: str, skipped: Mapping[str, int], advice: str = "") -> None:
  """Logs a warning if anything was skipped."""
  if skipped:
    _log.warning("%s: %s. %s", printable(folder), describe(skipped), advice)
