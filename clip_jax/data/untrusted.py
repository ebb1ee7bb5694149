"""Reads files that anyone may have written: regular files only, within limits, with one error.

A data set or a checkpoint that was downloaded can contain a FIFO that blocks forever, a file that
does not fit into memory, or JSON that a parser fails on.
"""

from collections.abc import Iterator
import json
import os
import stat
from typing import Any, BinaryIO, TextIO

from clip_jax.errors import UserError

# Bytes. Parsed JSON can take twenty times its size in memory.
MAX_JSON = 64 * 2**20
MAX_LINE = 4 * 2**20  # Characters of one line of a table.
_BROKEN = (ValueError, RecursionError)  # UnicodeDecodeError is a ValueError, and so is a long int.


class NotAFile(OSError):
  """It is a FIFO, a device, a socket, a folder, or a link to something that may not be read."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """Opens a regular file for reading; never waits for a FIFO or touches a device.

  Raises:
    NotAFile: it is not a regular file.
    OSError: it is missing or cannot be read.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):  # Opening a device may have side effects.
    raise NotAFile(f"{os.fspath(path)} is not a regular file.")
  # The file may have been replaced since: O_NONBLOCK opens a FIFO without waiting for a writer.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise NotAFile(f"{os.fspath(path)} is not a regular file.")
  return open(descriptor, "rb")


def read_regular(path: str | os.PathLike, most: int) -> bytes:
  """Returns the content of a regular file.

  Raises:
    OSError: the file is missing, is not a regular file, or has more than `most` bytes.
  """
  with open_regular(path) as f:
    if os.fstat(f.fileno()).st_size > most:
      raise OSError(f"{os.fspath(path)} has more than {most:,} bytes.")
    return f.read()


def read_json(path: str | os.PathLike, kind: type = dict, advice: str = "") -> Any:
  """Returns the content of a JSON file.

  Args:
    path: a local file.
    kind: type that the content must have.
    advice: last sentence of the error message.

  Raises:
    UserError: the file cannot be read, is too large, is not JSON, or holds another type.
  """
  try:
    content = read_regular(path, MAX_JSON)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error} {advice}".strip()) from error
  return parse_json(content, str(path), kind, advice)


def parse_json(
  content: bytes | str, where: str, kind: type = dict, advice: str = "", most: int | None = None
) -> Any:
  """Parses JSON from `where`, of at most `most` bytes, `MAX_JSON` by default; see `read_json`."""
  most = MAX_JSON if most is None else most
  if len(content) > most:
    raise UserError(f"{where} has more than {most:,} bytes. {advice}".strip())
  try:
    value = json.loads(content)
  except _BROKEN as error:
    reason = "too deeply nested" if isinstance(error, RecursionError) else error
    raise UserError(f"{where} is not JSON: {reason}. {advice}".strip()) from error
  if not isinstance(value, kind):
    raise UserError(
      f"{where} holds a {type(value).__name__}, not a {kind.__name__}. {advice}".strip()
    )
  return value


def text_lines(file: TextIO) -> Iterator[str]:
  """Yields the lines of a text file.

  Raises:
    ValueError: a line has more than `MAX_LINE` characters.
  """
  number = 0
  while line := file.readline(MAX_LINE + 1):
    number += 1
    if len(line) > MAX_LINE:
      raise ValueError(f"line {number} has more than {MAX_LINE:,} characters")
    yield line
