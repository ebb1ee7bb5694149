"""Checkpoints of the train state and the complete config; the step gives the data position."""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import logging
from pathlib import Path
import re
from typing import Any

from ml_collections.config_dict import ConfigDict
import orbax.checkpoint as ocp

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.model.transfer import check_same_arrays
from clip_jax.pretrained.run_checkpoint import shapes
from clip_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints of one run, in a folder of their own; saved in the background.

  An interrupted save leaves earlier checkpoints intact.
  """

  def __init__(self, folder: Path | str, *, max_checkpoints: int = 2):
    """Opens or creates `folder`, in which only the `keep` newest checkpoints are kept."""
    # Silence Orbax's progress messages, and its tracebacks, one per array, when a save fails: they
    # would bury the message of the exception.
    for name in ("absl", "asyncio"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    self.folder = Path(folder).absolute()
    self.manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_checkpoints, cleanup_tmp_directories=True, create=True
      ),
      # Register the handlers, so that metadata is available before the first save or restore.
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
      },
    )

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None if there is none."""
    return self.manager.latest_step()

  def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
    """Starts a save in the background; the arrays are copied first and may be donated at once.

    Waits for the previous save, and raises its error if it failed.
    """
    self.manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state_dict(state)),
        config=ocp.args.JsonSave(config_lib.to_saved(config)),
      ),
    )

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
    check_same_arrays(shapes(saved), shapes(state_dict(abstract)), f"{self.folder / str(step)}")
    restored = self.manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state_dict(abstract)))
    )["state"]
    return TrainState(**restored)

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
def report_full_disk(workdir: Path) -> Iterator[None]:
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
      + (
        f"Saved checkpoints are intact, the newest is of step {max(steps)}. "
        if steps
        else "No checkpoint was saved yet. "
      )
      + "Free some space or raise the quota, then rerun the command to resume."
    ) from e


def _is_full(error: BaseException) -> bool:
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  # Arrays are written by native code, which gives the error code only in its message.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return (
    getattr(error, "errno", None) in codes
    or (code is not None and int(code[1]) in codes)
    or "RESOURCE_EXHAUSTED: Error writing" in str(error)
  )


def state_dict(state: TrainState) -> dict[str, Any]:
  """Returns the fields of a train state by name."""
  return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
