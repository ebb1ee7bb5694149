"""Checkpoints of this package's own training runs, opened read-only.

The run may still be training, and delete a checkpoint while it is read. So nothing here creates,
renames or deletes a file, and whoever reads takes the newest checkpoint that is whole. The writer
is `clip_jax.training.checkpoint`.
"""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.model.frozen import replace_trained
from clip_jax.model.transfer import check_same_arrays
from clip_jax.parallel.agreement import all_gather_objects
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained.checksums import Checksums, crc32, host_checksums
from clip_jax.pretrained.saved_arrays import DamagedError, SavedArrays, read_into, read_json

_ATTEMPTS = 50  # How often to look for a newer checkpoint when they are deleted while being read.

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
  """One checkpoint of a run.

  Attributes:
    folder: the folder of the run's checkpoints.
    step: step of this one.
  """

  folder: Path
  step: int

  @property
  def path(self) -> Path:
    """The folder of this checkpoint."""
    return self.folder / str(self.step)

  @functools.cached_property
  def checksums(self) -> Checksums | None:
    """The checksums, or None for a checkpoint that was saved before there were any.

    Raises:
      DamagedError: they are missing or damaged, or belong to another step.
    """
    items = read_json(self.path / "_CHECKPOINT_METADATA")
    items = items.get("item_handlers") if isinstance(items, dict) else None
    if not isinstance(items, dict) or not {"state", "config"} <= items.keys():
      raise DamagedError("its _CHECKPOINT_METADATA is damaged")
    if items.keys() == {"state", "config"}:
      return None
    try:
      found = Checksums.from_json(read_json(self.path / "checksums/metadata"))
    except ValueError as error:
      raise DamagedError(f"it has {error}") from error
    if found.step != self.step:
      raise DamagedError(f"it is a copy of the checkpoint of step {found.step}")
    return found

  def config(self, *, trust: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the config that the checkpoint was trained with; see `config.from_json`.

    Raises:
      DamagedError: the config is missing, or has changed since it was saved.
    """
    return config_lib.from_json(self.config_text, trust=trust)

  @functools.cached_property
  def config_text(self) -> str:
    """The config as it was saved.

    Raises:
      DamagedError: see `config`.
    """
    checksums, text = self.checksums, read_json(self.path / "config/metadata")
    if not isinstance(text, str):
      raise DamagedError("its config/metadata is not a text")
    if checksums and crc32(text) != checksums.config:
      raise DamagedError("its config does not match its checksum")
    return text

  def arrays(self, wanted: dict[str, Any]) -> dict[str, Any]:
    """Restores arrays, with the dtypes in which they were saved and not verified yet.

    Args:
      wanted: part of the saved tree, with shapes and shardings to restore to.

    Raises:
      DamagedError: arrays cannot be read, or are not those that were saved.
      UserError: the checkpoint is of a different model; the message lists arrays that differ.
    """
    checksums, _ = self.checksums, self.config_text  # All of the checkpoint must be whole.
    saved = SavedArrays(self.path / "state")
    if checksums and saved.names != checksums.arrays.keys():
      raise DamagedError("its _METADATA does not match its checksums")
    parts = tuple(f"{name}/" for name in wanted)
    stored = saved.open(frozenset(n for n in saved.names if n in wanted or n.startswith(parts)))
    shapes = {n: tuple(x.shape) for n, x in stored.items()}
    if checksums:
      for name, x in stored.items():
        if (x.dtype.name, shapes[name]) != checksums.arrays[name][:2]:
          raise DamagedError(f"its {name} does not have the dtype and shape saved with it")
    check_same_arrays(
      shapes, {n: tuple(x.shape) for n, x in leaves_by_name(wanted).items()}, str(self.path)
    )
    return read_into(stored, wanted)

  def learner(self, params: dict, stats: dict, ema: dict | None = None) -> tuple[dict, dict]:
    """Returns the learner's `params` and `stats`, verified, without the optimizer state.

    Args:
      params, stats: shapes, dtypes and replicated shardings to restore to.
      ema: the same of the moving average, which then replaces the parameters that it is of.

    Raises:
      DamagedError, UserError: see `arrays`.
    """
    wanted = {"params": params, "stats": stats, **({"ema": ema} if ema else {})}
    restored = self.arrays(wanted)
    on_host = {n: np.asarray(x.addressable_data(0)) for n, x in leaves_by_name(restored).items()}
    if self.checksums:
      check_matching(self.checksums.differences(host_checksums(on_host)))
    else:
      check_finite([n for n, x in on_host.items() if _is_float(x) and not np.isfinite(x).all()])
    restored = cast_like(restored, wanted)
    params = restored["params"]
    return replace_trained(params, restored["ema"]) if ema else params, restored["stats"]


@dataclasses.dataclass(frozen=True)
class Found(Generic[T]):
  """The newest checkpoint that is whole.

  Attributes:
    checkpoint: the checkpoint.
    value: what was read from it.
    damaged: newer steps that are damaged, each with what is wrong with it.
  """

  checkpoint: RunCheckpoint
  value: T
  damaged: dict[int, str]

  def report(self) -> list[str]:
    """Returns a line for each newer checkpoint that is damaged."""
    return [
      f"The checkpoint {self.checkpoint.folder / str(step)} is damaged: {why}. Using that of step "
      f"{self.checkpoint.step} instead; nothing is deleted."
      for step, why in sorted(self.damaged.items(), reverse=True)
    ]


def read_newest(
  folder: Path,
  read: Callable[[RunCheckpoint], T],
  verify: Callable[[RunCheckpoint, T], None] = lambda checkpoint, value: None,
  *,
  only: int | None = None,
) -> Found[T] | None:
  """Reads the newest checkpoint that is whole; all processes must call this and get the same one.

  Args:
    folder: the folder of a run's checkpoints.
    read: reads a checkpoint, without communication between processes; raises a DamagedError if it
      is damaged.
    verify: raises a DamagedError, on every process, if the value is not what was saved. Runs once
      all processes have read the checkpoint, and may use all devices.
    only: the step to read; by default the newest that is whole.

  Returns:
    The checkpoint, or None if there is no checkpoint at all.

  Raises:
    UserError: all checkpoints are damaged, or `read` raises it.
  """
  damaged: dict[int, str] = {}
  for _ in range(_ATTEMPTS):
    steps = all_gather_objects({"steps": steps_in(folder)})[0]["steps"]
    left = [step for step in steps if step not in damaged and only in (None, step)]
    if not left:
      break
    checkpoint = RunCheckpoint(folder, max(left))
    value, why = _attempt(lambda: read(checkpoint))
    if not why:
      _, why = _attempt(lambda: verify(checkpoint, value))
    if not why:
      # A step that is gone was deleted by the run, or moved out of its way.
      newer = {s: why for s, why in damaged.items() if s > checkpoint.step and s in steps}
      return Found(checkpoint, value, newer)
    damaged[checkpoint.step] = why
  else:
    raise UserError(
      f"The run deletes its checkpoints in {folder} faster than they can be read. Set "
      "--config.train.max_checkpoints to more, or --config.train.save_every to more steps."
    )
  if not damaged:
    return None
  listed = "".join(f"\n  step {step}: {why}" for step, why in sorted(damaged.items(), reverse=True))
  raise UserError(
    f"No checkpoint in {folder} is whole:{listed}\nNothing is deleted. Restore one from a copy, or "
    "start over in another --workdir."
  )


def _attempt(make):
  """Calls `make` on every process; returns its value and what is damaged, the same on all."""
  value, why, failure = None, "", None
  try:
    value = make()
  except DamagedError as error:
    why = str(error)
  except Exception as error:
    failure = error
  said = all_gather_objects({"why": why, "failure": "" if failure is None else repr(failure)})
  if failure is not None:
    raise failure
  for i, one in enumerate(said):
    if one["failure"]:
      raise UserError(f"Process {i} on {one['host']} failed: {one['failure']}")
  return value, next((one["why"] for one in said if one["why"]), "")


def steps_in(folder: Path) -> list[int]:
  """Returns the steps that have a folder, whole or not; a save in progress has another name."""
  try:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
  except FileNotFoundError:
    return []
  return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def check_matching(names: list[str]) -> None:
  """Raises DamagedError if there are arrays that do not match their checksums."""
  if names:
    raise DamagedError(f"{_some(names)} not match the checksum saved with it")


def check_finite(names: list[str]) -> None:
  """Raises DamagedError if there are arrays that are not finite, because steps keep them finite."""
  if names:
    raise DamagedError(f"it has no checksums, and {_some(names)} not have finite values only")


def _some(names):
  return f"{len(names)} arrays, {names[0]} among them, do" if names[1:] else f"its {names[0]} does"


def cast_like(tree: Any, like: Any) -> Any:
  """Casts the arrays of a tree whose dtypes are not those of another tree."""
  return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, like)


def _is_float(x):
  return jnp.issubdtype(x.dtype, jnp.inexact)
