"""Checkpoints of the train state and the complete config; the step gives the data position."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict
import orbax.checkpoint as ocp

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.parallel.agreement import all_gather_objects
from clip_jax.parallel.tree_paths import leaves_by_name
from clip_jax.pretrained import run_checkpoint
from clip_jax.pretrained.checksums import Checksums, device_checksums
from clip_jax.pretrained.saved_arrays import DamagedError, os_error_code
from clip_jax.training import orbax_messages
from clip_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints of one run, in a folder of their own; saved in the background.

  Nothing is written before the first save. An interrupted save leaves earlier checkpoints intact.

  Attributes:
    damage: a line for each checkpoint that `restore` found damaged.
    unverified: step of the restored checkpoint if it has no checksums, and None otherwise.
  """

  def __init__(
    self,
    folder: Path | str,
    *,
    max_checkpoints: int = 2,
    before_save: Callable[[], None] = lambda: None,
  ):
    """Looks at nothing yet.

    Args:
      folder: the folder of the checkpoints.
      max_checkpoints: how many of the newest checkpoints to keep.
      before_save: called before each save, to raise an error if the folder is no longer this run's.
    """
    self.folder = Path(folder).absolute()
    self.damage: list[str] = []
    self.unverified: int | None = None
    self._max_checkpoints, self._before_save = max_checkpoints, before_save
    self._manager: ocp.CheckpointManager | None = None
    self._saved: int | None = None  # Step of the last save.
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(orbax_messages.dropped())

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None if there is none."""
    return max(run_checkpoint.steps_in(self.folder), default=None)

  def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
    """Starts a save in the background; the arrays are copied first and may be donated at once.

    Waits for the previous save, and raises its error if it failed. Saves each step once.
    """
    if step == self._saved:
      return
    self._before_save()
    self._set_aside(step, "replaced")
    self._manager = self._manager or self._open()
    saved, tree = config_lib.to_saved(config), state_dict(state)
    checksums = Checksums.of(step, saved, tree)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        config=ocp.args.JsonSave(saved),
        checksums=ocp.args.JsonSave(checksums.to_json()),
      ),
      force=True,  # Otherwise nothing is saved if somebody has copied a later step into the folder.
    )
    self._saved = step

  def _open(self):
    """Opens the folder for writing, and removes what interrupted saves have left behind."""
    return ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=self._max_checkpoints, cleanup_tmp_directories=True, create=True
      ),
    )

  def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
    """Restores the train state.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may differ from the saved one.
      step: step of the checkpoint; by default that of the newest one that is whole. Newer ones are
        then set aside, so that they are in the way of no save and no later start.

    Raises:
      UserError: there is no checkpoint that is whole, or it is of a different model; the message
        lists what is damaged, or the arrays that differ.
    """
    wanted = state_dict(abstract)
    found = run_checkpoint.read_newest(
      self.folder, lambda checkpoint: checkpoint.arrays(wanted), _verify, only=step
    )
    if found is None:
      which = "" if step is None else f" of step {step}"
      raise UserError(f"There is no checkpoint{which} in {self.folder}.")
    self.unverified = None if found.checkpoint.checksums else found.checkpoint.step
    self.damage = found.report()
    for damaged in found.damaged:
      self._set_aside(damaged, "damaged")
    all_gather_objects({})  # All processes see the folder without them from here on.
    return TrainState(**run_checkpoint.cast_like(found.value, wanted))

  def doubt(self) -> str:
    """Says that damage could explain a step that is not finite; "" if that is ruled out."""
    if self.unverified is None:
      return ""
    return (
      f"The run resumed from the checkpoint of step {self.unverified}, which has no checksums, so "
      "damage to it is another possible cause. "
    )

  def _set_aside(self, step, why):
    """Renames the folder of a step, if there is one, so that it is no longer a checkpoint."""
    if jax.process_index() == 0 and (self.folder / str(step)).exists():
      names = (f"{why}-{step}" + (f"-{i}" if i else "") for i in itertools.count())
      target = next(self.folder / name for name in names if not (self.folder / name).exists())
      (self.folder / str(step)).rename(target)

  def config(self, step: int | None = None, *, trust: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the config that the checkpoint was trained with; see `config.from_json`."""
    step = self.latest() if step is None else step
    return run_checkpoint.RunCheckpoint(self.folder, step).config(trust=trust)

  def config_text(self, step: int) -> str:
    """Returns the config of a checkpoint as it was saved, see `config.saved_entries`."""
    return run_checkpoint.RunCheckpoint(self.folder, step).config_text

  def check(self) -> None:
    """Raises the error of the last save if it has failed; does not wait for one in progress."""
    if self._manager and not self._manager.is_saving_in_progress():
      self._manager.wait_until_finished()

  def wait(self) -> None:
    """Waits for the save in progress to complete."""
    if self._manager:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in progress, and releases the folder."""
    with self._quiet:
      if self._manager:
        self._manager.close()


def _verify(checkpoint, restored):
  """Raises DamagedError unless the arrays of a train state are those that were saved."""
  if checkpoint.checksums:
    sums = leaves_by_name(jax.device_get(device_checksums(restored)))
    run_checkpoint.check_matching(checkpoint.checksums.differences(sums))
    return
  # Steps keep the parameters finite. An optimizer may start with infinite values, but not with NaN.
  sound = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))
  known = jax.jit(lambda tree: jax.tree.map(lambda x: ~jnp.isnan(x).any(), tree))
  weights = {name: restored[name] for name in ("params", "stats")}
  kept = jax.device_get({**sound(weights), "opt_state": known(restored["opt_state"])})
  run_checkpoint.check_finite([name for name, x in leaves_by_name(kept).items() if not x])
  if int(restored["step"]) != checkpoint.step:
    raise DamagedError(f"it is of step {int(restored['step'])}")


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
    steps = run_checkpoint.steps_in(workdir / "checkpoints")
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
  return os_error_code(error) in codes or "RESOURCE_EXHAUSTED: Error writing" in str(error)


def state_dict(state: TrainState) -> dict[str, Any]:
  """Returns the fields of a train state by name."""
  return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
