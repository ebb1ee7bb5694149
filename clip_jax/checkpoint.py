"""Checkpoints: the train state and the complete config. The data position is the step."""

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

  A save that is cut off leaves the ones before it as they were.
  """

  def __init__(self, folder: Path | str, *, keep: int = 2):
    """Args: `folder` is made when missing; the `keep` newest checkpoints are kept."""
    # Orbax tells its every step otherwise. When a save fails, that is raised; its tracebacks, one
    # of each array, would bury the message.
    for name in ("absl", "asyncio"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    self.folder = Path(folder).absolute()
    self.manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, create=True),
        # Named here, so that what lies there can be told before anything was saved or restored.
        item_handlers={"state": ocp.StandardCheckpointHandler(),
                       "config": ocp.JsonCheckpointHandler()})

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self.manager.latest_step()

  def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
    """Starts to save; the arrays may be given away at once, for they are copied first.

    Waits for the save before it, and raises what went wrong with that.
    """
    self.manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(as_dict(state)),
        config=ocp.args.JsonSave(config_lib.to_json(config))))

  def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """The train state saved at `step` (the newest).

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may be another than it was.

    Raises:
      UserError: the checkpoint is of another model; says which arrays differ.
    """
    step = self.latest() if step is None else step
    saved = self.manager.item_metadata(step)["state"].tree
    check_same(_shapes(saved), _shapes(as_dict(abstract)), f"{self.folder / str(step)}")
    restored = self.manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(as_dict(abstract))))["state"]
    return TrainState(**restored)

  def restore_learner(self, params: dict, stats: dict,
                      step: int | None = None) -> tuple[dict, dict]:
    """Trained and other arrays of the learner alone, without the optimizer's.

    Args:
      params, stats: shapes, dtypes and shardings to restore to.

    Raises:
      UserError: the checkpoint is of another model; says which arrays differ.
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
    """The config that the checkpoint was trained with."""
    step = self.latest() if step is None else step
    restored = self.manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    return config_lib.from_json(restored["config"], trust=trust)

  def check(self) -> None:
    """Raises what went wrong with the last save, if that has ended; does not wait for it."""
    if not self.manager.is_saving_in_progress():
      self.manager.wait_until_finished()

  def wait(self) -> None:
    """Returns when what was started is saved."""
    self.manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self.manager.close()


@contextlib.contextmanager
def stopped_when_full(workdir: Path) -> Iterator[None]:
  """Says so when what is done in here finds the disk full.

  Raises:
    UserError: which checkpoint is still there.
  """
  try:
    yield
  except Exception as e:
    if not _is_full(e):
      raise
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    raise UserError(
        f"There is no room left to write in {workdir}: {str(e).splitlines()[-1]}\n"
        + (f"What was saved is whole, the newest of it the checkpoint of step {max(steps)}. "
           if steps else "Nothing was saved yet. ")
        + "Make room, or raise the quota; the same command goes on from there.") from e


def _is_full(error: BaseException) -> bool:
  codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  # What writes arrays is not Python, and tells the code in its message.
  told = re.search(r"os_error_code='(\d+)'", str(error))
  return (getattr(error, "errno", None) in codes or (told is not None and int(told[1]) in codes)
          or "RESOURCE_EXHAUSTED: Error writing" in str(error))


def as_dict(state: TrainState) -> dict[str, Any]:
  """The fields of a train state by name."""
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
               hint: str = "Use the config it was trained with (config.json beside it), or another "
                           "--workdir.") -> None:
  """Raises unless two sets of arrays have the same names and shapes; says what differs."""
  misshapen = [f"{n}: {saved[n]} there, {wanted[n]} here"
               for n in wanted if n in saved and saved[n] != wanted[n]]
  missing = [f"{n}: not there, {wanted[n]} here" for n in wanted if n not in saved]
  extra = [f"{n}: {saved[n]} there, not here" for n in saved if n not in wanted]
  differences = misshapen + missing + extra
  if differences:
    more = f"\n  ... and {len(differences) - most} more" if len(differences) > most else ""
    raise UserError(
        f"The checkpoint {where} is of another model; {len(differences)} arrays differ:\n  "
        + "\n  ".join(differences[:most]) + more
        + f"\n{hint}")
