"""Checkpoints of this package's own training runs, opened read-only.

The run may still be training. So nothing here creates, renames or deletes a file; the writer is
`clip_jax.training.checkpoint`.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict
import orbax.checkpoint as ocp

from clip_jax import config as config_lib
from clip_jax.model.transfer import check_same_arrays
from clip_jax.parallel.tree_paths import path_name


def latest_step(workdir: Path) -> int | None:
  """Step of the newest complete checkpoint, or None; a save in progress has another name."""
  folder = workdir / "checkpoints"
  steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
  return max(steps, default=None)


def read_config(workdir: Path, step: int, *, trust: tuple[str, ...] = ()) -> ConfigDict:
  """The config that the checkpoint was trained with; see `config.from_json`."""
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
    text = checkpointer.restore(_folder(workdir, step) / "config", args=ocp.args.JsonRestore())
  return config_lib.from_json(text, trust=trust)


def read_learner(workdir: Path, step: int, params: dict, stats: dict) -> tuple[dict, dict]:
  """The learner's `params` and `stats`, without the optimizer state.

  Args:
    params, stats: shapes, dtypes and shardings to restore to.

  Raises:
    UserError: the checkpoint is of a different model; the message lists arrays that differ.
  """
  folder = _folder(workdir, step) / "state"
  wanted = {"params": params, "stats": stats}
  with ocp.PyTreeCheckpointer() as checkpointer:
    saved = checkpointer.metadata(folder).item_metadata.tree
    check_same_arrays(shapes({name: saved[name] for name in wanted}), shapes(wanted), str(folder))
    restored = checkpointer.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        wanted,
        partial_restore=True,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      ),
    )
  return restored["params"], restored["stats"]


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of arrays, or of their metadata, by their names in the tree."""
  flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
  return {path_name(path): tuple(x.shape) for path, x in flat}


def _folder(workdir: Path, step: int) -> Path:
  return workdir.absolute() / "checkpoints" / str(step)
