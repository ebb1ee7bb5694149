"""Finds and opens files, local or in a bucket."""

from collections import Counter
import fnmatch
import glob
import hashlib
import os
import re
from typing import Any, BinaryIO

from clip_jax.cli.optional import optional
from clip_jax.data.folder_walk import describe, entries
from clip_jax.data.untrusted import open_regular
from clip_jax.errors import UserError

_BRACES = "{00000..00099} or {a,b}"
_MOST_FILES = 1_000_000
FOLLOW_LINKS = 'to follow links out of the folder, pass a pattern such as "DIR/*"'


def matching(
  path: str, suffixes: tuple[str, ...] = ("",), skipped: Counter | None = None
) -> tuple[Any, list[str]]:
  """Resolves a path to its files.

  Of a local folder, links that leave it and special files are skipped; a pattern follows links.

  Args:
    path: a file, a folder (its direct files are used), or a pattern with *, ?, [ ], ** or braces
      as in "{00000..00099}.tar" and "{cc3m,sbu}/*.tar"; either local or a URI that PyArrow can
      open: gs://, s3://, hdfs://, hf:// or file://.
    suffixes: file name endings to keep when `path` is a folder.
    skipped: receives the number of files of a folder that were skipped, by reason.

  Returns:
    (file system with `open_input_file` and `open_input_stream`, sorted paths of the files in it).

  Raises:
    UserError: there is no such file, not one for each expansion of the braces, or PyArrow cannot
      access the location.
  """
  path = os.fspath(path)
  skipped = Counter() if skipped is None else skipped
  if "{" in path and ("://" in path or not os.path.exists(path)):
    return _each(expand_braces(path), suffixes, skipped)
  if "://" not in path:
    if os.path.isfile(path):
      files = [path]
    elif os.path.isdir(path):
      there = entries(path, os.path.realpath(path), skipped, suffixes=suffixes)
      files = [entry.path for entry in there]
    else:
      files = [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
    folder, where = os.path.isdir(path), _local_file_system()
  else:
    files, folder, where = _remote(path)
  files = sorted(f for f in files if not folder or f.endswith(suffixes))
  if not files:
    wanted = f" ending in {' or '.join(suffixes)}" if folder and suffixes != ("",) else ""
    raise UserError(
      f"There are no files{wanted} at {path}. Expected a file, a folder or a pattern "
      'such as "data/*".' + (f" ({describe(skipped)}; {FOLLOW_LINKS})" if skipped else "")
    )
  return where, files


def expand_braces(pattern: str) -> list[str]:
  """Expands braces as a shell does: "{08..10}" to 08, 09, 10, and "{a,b}" to a, b.

  Raises:
    UserError: a brace is not closed, holds neither a range nor a list, or there are too many.
  """
  found = re.search(r"\{([^{}]*)\}", pattern)
  if not found:
    if "{" in pattern or "}" in pattern:
      raise UserError(f"{pattern}: a brace is not closed. Expected {_BRACES}.")
    return [pattern]
  ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
  if ends:
    first, last = int(ends[1]), int(ends[2])
    width = max(map(len, ends.groups())) if any(e[0] == "0" for e in ends.groups()) else 0
    if abs(last - first) >= _MOST_FILES:
      raise UserError(f"{pattern} has more than {_MOST_FILES:,} files.")
    step = 1 if last >= first else -1
    inner = [f"{i:0{width}d}" for i in range(first, last + step, step)]
  else:
    inner = found[1].split(",")
    if len(inner) == 1:
      raise UserError(f"{pattern}: {found[0]} is not of the form {_BRACES}.")
  before, after = pattern[: found.start()], pattern[found.end() :]
  made = [path for one in inner for path in expand_braces(before + one + after)]
  if len(made) > _MOST_FILES:
    raise UserError(f"{pattern} has more than {_MOST_FILES:,} files.")
  return list(dict.fromkeys(made))  # Nested lists repeat the outer alternatives.


def _each(patterns, suffixes, skipped):
  """Resolves several patterns, each of which must match; their order is kept."""
  files, missing, where = [], [], None
  for pattern in patterns:
    try:
      where, found = matching(pattern, suffixes, skipped)
      files += found
    except UserError as error:
      missing.append((pattern, error))
  if missing:
    names = ", ".join(pattern for pattern, _ in missing[:5])
    raise UserError(
      f"{len(missing):,} of the {len(patterns):,} expansions match no file: {names}"
      f"{', ...' if len(missing) > 5 else ''}. Write a range of the files that exist. "
      f"({missing[0][1]})"
    ) from missing[0][1]
  return where, list(dict.fromkeys(files))


def opened(file: str) -> BinaryIO:
  """Opens a local or remote file for reading.

  Raises:
    FileNotFoundError: the file does not exist.
    OSError: it is a FIFO, a device or a folder.
  """
  if "://" not in file:
    return open_regular(file)
  where, inner = _remote_file_systems().FileSystem.from_uri(file)
  return where.open_input_file(inner)


def size(file: str) -> int:
  """Size of a file in bytes."""
  if "://" not in file:
    return os.path.getsize(file)
  where, inner = _remote_file_systems().FileSystem.from_uri(file)
  return where.get_file_info(inner).size


def sha256(file: str) -> str:
  """Computes the SHA-256 checksum of a local or remote file, in hexadecimal."""
  with opened(file) as f:
    return hashlib.file_digest(f, "sha256").hexdigest()  # type: ignore[arg-type]


class _PlainFiles:
  """The local file system where PyArrow is not installed, which only Parquet and URIs need."""

  def open_input_file(self, path: str) -> BinaryIO:
    return open_regular(path)

  def open_input_stream(self, path: str, compression: None = None) -> BinaryIO:
    return open_regular(path)


def _local_file_system():
  try:
    from pyarrow import fs
  except ImportError:
    return _PlainFiles()
  return fs.LocalFileSystem()


def _remote_file_systems():
  """PyArrow's file systems, which read gs://, s3://, hdfs:// and hf://."""
  return optional("pyarrow.fs", "parquet")


def _remote(path):
  """Returns (files, whether `path` is a folder, file system) for a URI."""
  # PyArrow URIs cannot contain wildcards: list the fixed prefix, then match the names.
  fixed = re.match(r"[^*?\[]*", path)[0]
  base = path if fixed == path else fixed[: fixed.rindex("/")]
  fs = _remote_file_systems()
  try:
    where, start = fs.FileSystem.from_uri(base)
    if fixed == path and where.get_file_info(start).type == fs.FileType.File:
      return [start], False, where
    found = where.get_file_info(
      fs.FileSelector(start, allow_not_found=True, recursive=fixed != path)
    )
  except (OSError, ValueError, ImportError) as error:
    raise UserError(
      f"{path} cannot be accessed: {str(error).partition(chr(10))[0]}. Expected a "
      "local path or a URI such as gs://BUCKET/NAME."
    ) from error
  files = [f.path for f in found if f.is_file]
  if fixed == path:
    return files, True, where
  whole = start + path[len(base) :]
  pattern = re.compile(fnmatch.translate(whole))
  # As in local patterns, * matches within one name; only ** crosses folders.
  deep = "**" in path
  return (
    [f for f in files if pattern.match(f) and (deep or f.count("/") == whole.count("/"))],
    False,
    where,
  )
