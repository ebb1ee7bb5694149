"""Which files a path means, here or in a bucket, and what is in them."""

import fnmatch
import glob
import os
import re
from typing import BinaryIO

from pyarrow import fs

from clip_jax.errors import UserError


def matching(path: str, suffixes: tuple[str, ...] = ("",)) -> tuple[fs.FileSystem, list[str]]:
  """The files that a path means, sorted, and where they can be opened.

  Args:
    path: a file; a folder, of which the files directly inside count; or a pattern with * ? [ ] or
      **. Of this machine, or a URI of what PyArrow opens: gs://, s3://, hdfs://, hf://, file://.
    suffixes: how the names of a folder's files end.

  Raises:
    UserError: nothing is there, or PyArrow cannot look there.
  """
  path = os.fspath(path)
  if "{" in path and not os.path.exists(path):
    raise UserError(f"Braces are not understood in {path}; write * or ? instead.")
  if "://" not in path:
    files = ([path] if os.path.isfile(path) else
             [e.path for e in os.scandir(path) if e.is_file()] if os.path.isdir(path) else
             [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)])
    folder, where = os.path.isdir(path), fs.LocalFileSystem()
  else:
    files, folder, where = _remote(path)
  files = sorted(f for f in files if not folder or f.endswith(suffixes))
  if not files:
    wanted = f" that end in {' or '.join(suffixes)}" if folder and suffixes != ("",) else ""
    raise UserError(f"There are no files{wanted} at {path}. Expected a file, a folder or a pattern "
                    'such as "data/*".')
  return where, files


def opened(file: str) -> BinaryIO:
  """A file for reading from its beginning.

  Raises:
    FileNotFoundError: it is not there.
  """
  if "://" not in file:
    return open(file, "rb")
  where, inner = fs.FileSystem.from_uri(file)
  return where.open_input_file(inner)


def size(file: str) -> int:
  """Bytes of a file."""
  if "://" not in file:
    return os.path.getsize(file)
  where, inner = fs.FileSystem.from_uri(file)
  return where.get_file_info(inner).size


def _remote(path):
  """(files, whether `path` is a folder, file system) for a URI."""
  # A URI must not hold wildcards: what is before the first is looked up, the rest is compared.
  fixed = re.match(r"[^*?\[]*", path)[0]
  base = path if fixed == path else fixed[:fixed.rindex("/")]
  try:
    where, start = fs.FileSystem.from_uri(base)
    if fixed == path and where.get_file_info(start).type == fs.FileType.File:
      return [start], False, where
    found = where.get_file_info(fs.FileSelector(
        start, allow_not_found=True, recursive=fixed != path))
  except (OSError, ValueError, ImportError) as error:
    raise UserError(f"{path} cannot be looked up: {str(error).partition(chr(10))[0]}. Expected a "
                    "path of this machine, or a URI such as gs://BUCKET/NAME.") from error
  files = [f.path for f in found if f.is_file]
  if fixed == path:
    return files, True, where
  whole = start + path[len(base):]
  pattern = re.compile(fnmatch.translate(whole))
  # As for local patterns, * is for a part of one name, and only ** for folders.
  deep = "**" in path
  return [f for f in files if pattern.match(f) and (deep or f.count("/") == whole.count("/"))
          ], False, where
