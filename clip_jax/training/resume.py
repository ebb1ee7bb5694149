"""Resuming a run: its state, what it has seen, and the fields of its config that have changed."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import TypeVar

import jax

from clip_jax.config import saved_entries, to_saved
from clip_jax.errors import UserError
from clip_jax.parallel.agreement import on_all_processes
from clip_jax.pretrained.saved_arrays import DamagedError
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.config_changes import changed_fields, check_data, check_model
from clip_jax.training.history import (
  History,
  Record,
  check_length,
  data_fingerprint,
  tokenizer_fingerprint,
)
from clip_jax.training.setup import TrainSetup, with_history
from clip_jax.training.state import TrainState

T = TypeVar("T")


def new_record(setup: TrainSetup) -> Record:
  """Returns what history.json says of a run that starts; its fingerprints only on process 0."""
  data, tokenizer = _on_process_0(
    lambda: (
      data_fingerprint(setup.data.source),
      tokenizer_fingerprint(setup.data.views.tokenizer),
    )
  ) or ("", "")
  return Record(setup.history, data, tokenizer)


def resume(
  setup: TrainSetup, record: Record, checkpoints: Checkpoints, workdir: Path
) -> tuple[TrainSetup, Record, TrainState, list[str]]:
  """Restores the newest checkpoint that is whole, and takes over what the run has seen.

  Args:
    setup: the setup, as if the run started now.
    record: that of such a run.
    checkpoints: the checkpoints, with at least one in their folder.
    workdir: the run's folder; nothing is written there.

  Returns:
    The setup and the record with the history of the run, the train state, and a line for each field
    of the config that has changed since the last start.

  Raises:
    UserError: the run is of another model, tokenizer or training data, or longer than its config
      says; or no checkpoint is whole.
  """
  past = on_all_processes(lambda: Record.read(workdir))
  before = _saved_fields(workdir, checkpoints)
  changes = {} if before is None else changed_fields(before, saved_entries(to_saved(setup.config)))
  _on_process_0(lambda: check_data(changes, past, record, workdir))
  state = checkpoints.restore(setup.state)
  start = int(state.step)
  check_skipped(int(state.skipped), setup.training.skip_nonfinite)
  check_model(changes, workdir)
  batch_size, flops = setup.data.batch_size, setup.compute.flops
  if past is None:
    fields = saved_entries(checkpoints.config_text(start))
    history = History.new(int(json.loads(fields["data.batch_size"])), flops)
  else:
    history = past.history
  history = history.resumed(start, batch_size, flops)
  setup = with_history(setup, history)
  check_length(history, start, setup.total_steps)
  lines = [f"changed    {name}: {old} -> {new}" for name, (old, new) in changes.items()]
  return setup, dataclasses.replace(record, history=history), state, lines


def _saved_fields(workdir, checkpoints):
  """The fields of the run's config at its last start; None if they cannot be read."""
  for read in (
    lambda: (workdir / "config.json").read_text("utf-8"),
    lambda: checkpoints.config_text(checkpoints.latest()),
  ):
    try:
      return saved_entries(read())
    except (OSError, ValueError, DamagedError):  # A UserError is a ValueError.
      continue
  return None


def _on_process_0(make: Callable[[], T]) -> T | None:
  """Calls `make` on process 0 only; its UserError is raised on all."""
  return on_all_processes(lambda: make() if jax.process_index() == 0 else None)


def check_skipped(skipped: int, allowed: int) -> None:
  """Raises UserError if a resumed run has already skipped more steps than are now allowed."""
  if skipped > allowed:
    raise UserError(
      f"This run has skipped {skipped} steps that were not finite, but "
      f"train.skip_nonfinite={allowed}. Set --config.train.skip_nonfinite to "
      f"{skipped} or more, or start over in another --workdir."
    )
