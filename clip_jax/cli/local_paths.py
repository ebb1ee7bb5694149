"""Paths that users give: `~` stands for the home folder, and output goes to this machine only."""

import os
from pathlib import Path
import re

from clip_jax.errors import UserError


def local_path(path: Path | str, what: str) -> Path:
  """Returns a path on this machine, with `~` expanded.

  Args:
    path: the path as the user gave it.
    what: what it is the path of, such as "--workdir", for the message.

  Raises:
    UserError: it is a URL.
  """
  # `Path` joins double slashes: gs://bucket/run becomes gs:/bucket/run.
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
    raise UserError(
      f"{what}={path} is a URL, but runs, models and results are in folders. Mount the bucket as a "
      "folder, or use a local folder and copy it."
    )
  return Path(path).expanduser()


def expand_home(argument: str) -> str:
  """Expands `~` in the value of a flag, or in each of several values separated by commas.

  A shell expands it at the start of a word only, so not in --workdir=~/run.
  """
  flag, equals, value = argument.partition("=")
  return flag + equals + ",".join(os.path.expanduser(one) for one in value.split(","))
