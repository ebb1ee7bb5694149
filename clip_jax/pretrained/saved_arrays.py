"""Reads the arrays of a checkpoint with TensorStore, the library in which Orbax writes them.

Orbax's own reader suits a checkpoint that is whole. At an error it leaves the reads in progress
behind, which then print their tracebacks, and it cannot run in the event loop of a notebook.
"""

from collections.abc import Iterator
import contextlib
import errno
import json
from pathlib import Path
import re
from typing import Any

import jax
import tensorstore

from clip_jax.errors import UserError
from clip_jax.parallel.tree_paths import leaves_by_name

# Errors of the process or its rights, which say nothing about the checkpoint.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamagedError(Exception):
  """A checkpoint, or a part of it, is damaged or missing; the message is one line."""


class SavedArrays:
  """The arrays in one folder, by name.

  Attributes:
    names: their names, such as `params/model/image/embedding/kernel`.
  """

  def __init__(self, folder: Path):
    """Reads the list of arrays.

    Raises:
      DamagedError: it is missing or damaged.
    """
    self._folder = folder
    plain = read_json(folder / "_METADATA")
    try:
      entries = [
        ([str(key["key"]) for key in one["key_metadata"]], one["value_metadata"])
        for one in plain["tree_metadata"].values()
      ]
      # Entries that are skipped stand for empty parts of the tree.
      keys = [keys for keys, value in entries if not value["skip_deserialize"]]
      self._ocdbt, zarr3 = plain["use_ocdbt"], plain["use_zarr3"]
      self._zeros = not plain["store_array_data_equal_to_fill_value"]
    except (KeyError, TypeError, AttributeError) as error:
      raise DamagedError("its _METADATA is damaged") from error
    self._driver = "zarr3" if zarr3 else "zarr"
    self._files = {"/".join(one): ".".join(one) for one in keys}
    self.names = frozenset(self._files)

  def open(self, names: frozenset[str]) -> dict[str, tensorstore.TensorStore]:
    """Opens arrays, which have a shape and a dtype then.

    Raises:
      DamagedError: one of them cannot be opened.
    """
    opening = {name: tensorstore.open(self._spec(self._files[name]), read=True) for name in names}
    return {name: _result(name, future) for name, future in opening.items()}

  def _spec(self, file):
    base = {"driver": "file", "path": f"{self._folder}/"}
    return {
      "driver": self._driver,
      "kvstore": {"driver": "ocdbt", "base": base, "path": f"{file}/"}
      if self._ocdbt
      else {"driver": "file", "path": f"{self._folder / file}/"},
      "fill_missing_data_reads": self._zeros,
    }


def read_into(stored: dict[str, tensorstore.TensorStore], wanted: Any) -> Any:
  """Reads open arrays into device arrays, in the dtypes in which they are stored.

  Args:
    stored: the open arrays.
    wanted: a tree of their names, with shapes and shardings.

  Raises:
    DamagedError: one of them cannot be read.
  """
  arrays = leaves_by_name(wanted)
  # Start all reads, which run in TensorStore's threads, before waiting for the first one.
  reading = {name: _start(stored[name], x.sharding) for name, x in arrays.items()}

  def array(name, x):
    read = reading.pop(name)
    return jax.make_array_from_callback(
      x.shape, x.sharding, lambda index: _result(name, read[str(index)])
    )

  leaves = [array(name, x) for name, x in arrays.items()]
  return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _start(store, sharding):
  """Starts to read the parts of an array that devices of this process need, each part once."""
  parts = sharding.addressable_devices_indices_map(tuple(store.shape)).values()
  return {
    name: store[index].read() for name, index in {str(index): index for index in parts}.items()
  }


def _result(name, future):
  with damage_in(name):
    return future.result()


@contextlib.contextmanager
def damage_in(what: str) -> Iterator[None]:
  """Converts errors of reading into a DamagedError, unless they say nothing about the files."""
  try:
    yield
  except (OSError, ValueError, NotImplementedError) as error:
    text = str(error).partition("\n")[0]
    if os_error_code(error) in _NOT_DAMAGE:
      raise UserError(f"{what} cannot be read: {text}") from error
    shown = text if len(text) < 120 else text[:120] + "..."
    raise DamagedError(f"its {what} cannot be read ({shown})") from error


def read_json(path: Path) -> Any:
  """Reads a JSON file of a checkpoint.

  Raises:
    DamagedError: it is missing or not JSON.
  """
  name = "/".join(path.parts[-2:]) if path.name == "metadata" else path.name
  with damage_in(name):
    try:
      return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
      raise DamagedError(f"it has no {name}") from error
    except (ValueError, RecursionError) as error:
      raise DamagedError(f"its {name} is not JSON") from error


def os_error_code(error: BaseException) -> int | None:
  """Returns the error number of the operating system behind an error, if there is one."""
  # TensorStore is native code, and gives the number only in its message.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return int(code[1]) if code else getattr(error, "errno", None)
