"""Checkpoints of the train state and the complete config; the step gives the data position."""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import logging
from pathlib import Path
import re
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict
import orbax.checkpoint as ocp

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.step import TrainState


class Checkpoints:
  """The checkpoints of one run, in a folder of their own; saved in the background.

  An interrupted save leaves earlier checkpoints intact.
  """

  def __init__(self, folder: Path | str, *, keep: int = 2):
    """Opens or creates `folder`, in which only the `keep` newest checkpoints are kept."""
    # Silence Orbax's progress messages, and its tracebacks, one per array, when a save fails: they
    # would bury the message of the exception.
    for name in ("absl", "asyncio"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    self.folder = Path(folder).absolute()
    self.manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, create=True),
        # Register the handlers, so that metadata is available before the first save or restore.
        item_handlers={"state": ocp.StandardCheckpointHandler(),
                       "config": ocp.JsonCheckpointHandler()})

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None if there is none."""
    return self.manager.latest_step()

  def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
    """Starts a save in the background; the arrays are copied first and may be donated at once.

    Waits for the previous save, and raises its error if it failed.
    """
    self.manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(as_dict(state)),
        config=ocp.args.JsonSave(config_lib.to_json(config))))

  def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """Restores the train state.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may differ from the saved one.
      step: step of the checkpoint; the newest by default.

    Raises:
      UserError: the checkpoint is of a different model; the message lists arrays that differ.
    """
    step = self.latest() if step is None else step
    saved = self.manager.item_metadata(step)["state"].tree
    check_same(_shapes(saved), _shapes(as_dict(abstract)), f"{self.folder / str(step)}")
    restored = self.manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(as_dict(abstract))))["state"]
    return TrainState(**restored)

  def restore_learner(self, params: dict, stats: dict,
                      step: int | None = None) -> tuple[dict, dict]:
    """Restores only the learner's `params` and `stats`, without the optimizer state.

    Args:
      params, stats: shapes, dtypes and shardings to restore to.
      step: step of the checkpoint; the newest by default.

    Raises:
      UserError: the checkpoint is of a different model; the message lists arrays that differ.
    """
    step = self.latest() if step is None else step
    folder = self.folder / str(step) / "state"
    wanted = {"params": params, "stats": stats}
    saved = self.manager.item_metadata(step)["state"].tree
    check_same(_shapes({name: saved[name] for name in wanted}), _shapes(wanted), str(folder))
    with ocp.PyTreeCheckpointer() as checkpointer:
      restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(
          wanted, partial_restore=True,
          restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)))
    return restored["params"], restored["stats"]

  def config(self, step: int | None = None, *, trust: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the config that the checkpoint was trained with; see `config.from_json`."""
    step = self.latest() if step is None else step
    restored = self.manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    return config_lib.from_json(restored["config"], trust=trust)

  def check(self) -> None:
    """Raises the error of the last save if it has failed; does not wait for one in progress."""
    if not self.manager.is_saving_in_progress():
      self.manager.wait_until_finished()

  def wait(self) -> None:
    """Waits for the save in progress to complete."""
    self.manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in progress, and releases the folder."""
    self.manager.close()


@contextlib.contextmanager
def stopped_when_full(workdir: Path) -> Iterator[None]:
  """Converts the errors of a full disk inside this context into a UserError.

  Raises:
    UserError: the disk is full; the message names the newest checkpoint.
  """
  try:
    yield
  except Exception as e:
    if not _is_full(e):
      raise
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    raise UserError(
        f"No space left to write in {workdir}: {str(e).splitlines()[-1]}\n"
        + (f"Saved checkpoints are intact, the newest is of step {max(steps)}. "
           if steps else "No checkpoint was saved yet. ")
        + "Free some space or raise the quota, then rerun the command to resume.") from e


def _is_full(error: BaseException) -> bool:
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  # Arrays are written by native code, which gives the error code only in its message.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return (getattr(error, "errno", None) in codes or (code is not None and int(code[1]) in codes)
          or "RESOURCE_EXHAUSTED: Error writing" in str(error))


def as_dict(state: TrainState) -> dict[str, Any]:
  """Returns the fields of a train state by name."""
  return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
  return {"/".join(_name(k) for k in path): tuple(x.shape) for path, x in flat}


def _name(key: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def check_same(saved: dict[str, tuple], wanted: dict[str, tuple], where: str, *, most: int = 5,
               hint: str = "Use the config it was trained with (config.json in its workdir), or "
                           "another --workdir.") -> None:
  """Raises UserError unless two sets of arrays have the same names and shapes.

  Args:
    saved, wanted: shapes by name, in the checkpoint and as expected.
    where: path of the checkpoint, for the message.
    most: maximum number of differences to list.
    hint: end of the message: how to fix it.
  """
  misshapen = [f"{n}: saved {saved[n]}, expected {wanted[n]}"
               for n in wanted if n in saved and saved[n] != wanted[n]]
  missing = [f"{n}: not saved, expected {wanted[n]}" for n in wanted if n not in saved]
  extra = [f"{n}: saved {saved[n]}, not expected" for n in saved if n not in wanted]
  differences = misshapen + missing + extra
  if differences:
    more = f"\n  ... and {len(differences) - most} more" if len(differences) > most else ""
    raise UserError(
        f"The checkpoint {where} is of a different model; {len(differences)} arrays differ:\n  "
        + "\n  ".join(differences[:most]) + more
        + f"\n{hint}")
