"""A folder with two checkpoints, random damage to the newer one, and what must survive it."""

import collections
import dataclasses
import hashlib
from pathlib import Path
from random import Random
import shutil

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict
import numpy as np
import optax

from clip_jax.config import call
from clip_jax.objectives.clip import Clip
from clip_jax.parallel import mesh as mesh_lib, partition
from clip_jax.pretrained import run_checkpoint
from clip_jax.training import state as state_lib
from clip_jax.training.checkpoint import Checkpoints
from tiny import learner

CONFIG = ConfigDict({"objective": call(Clip)})
STEPS = (3, 7)


def state_at(step):
  state = state_lib.init_train_state(learner(seed=step), optax.adam(1e-3))
  return dataclasses.replace(state, step=jnp.int32(step))


def abstract(state):
  shardings = partition.state_shardings(state, mesh_lib.make_mesh(2, 4), min_size=64)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )


def save_all(folder, states):
  """Saves a checkpoint of each state."""
  checkpoints = Checkpoints(folder)
  for step, state in states.items():
    checkpoints.save(step, state, CONFIG)
  checkpoints.close()


def contents(folder):
  """How often each content of a file occurs in a folder, whatever the files are called."""
  files = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
  return collections.Counter(hashlib.sha256(content).hexdigest() for content in files)


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def read_learner(folder, state):
  """Reads the parameters as `clip_jax.load` does."""
  mesh = mesh_lib.make_mesh()
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  params, stats = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    (state.params, state.stats),
  )
  return run_checkpoint.read_newest(
    folder, lambda checkpoint: (checkpoint.config(), checkpoint.learner(params, stats)[0])
  )


def check_survived(folder, states):
  """Checks that readers and the trainer use a whole checkpoint; returns the trainer's lines."""
  before = contents(folder)
  found = read_learner(folder, states[7])
  assert same(found.value[1], states[found.checkpoint.step].params)
  assert found.value[0].to_dict() == CONFIG.to_dict()
  assert contents(folder) == before
  checkpoints = Checkpoints(folder)
  restored = checkpoints.restore(abstract(states[7]))
  step = int(restored.step)
  assert same(restored, states[step])
  assert len(checkpoints.damage) == (step != 7)
  assert all(str(folder / "7") in line and "\n" not in line for line in checkpoints.damage)
  assert contents(folder) == before  # Nothing is deleted or changed.
  assert run_checkpoint.steps_in(folder) == ([3, 7] if step == 7 else [3])
  return checkpoints.damage


def flip(content, rng):
  i = rng.randrange(len(content))
  return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


def truncate(content, rng):
  return content[: rng.randrange(len(content))]


def zeros(content, rng):
  i, n = rng.randrange(len(content)), rng.randrange(1, 513)
  return content[:i] + bytes(len(content[i : i + n])) + content[i + n :]


def nothing(content, rng):
  return b""


def damage_at_random(folder, rng):
  files = sorted(path for path in (folder / "7").rglob("*") if path.is_file())
  path, kind = rng.choice(files), rng.choice((flip, flip, flip, truncate, zeros, nothing, None))
  if kind is None:
    path.unlink()
  else:
    path.write_bytes(kind(path.read_bytes(), rng))
  return f"{kind.__name__ if kind else 'unlink'} {path.relative_to(folder)}"


class DamagedCheckpoint:
  """Damages a file of the newer checkpoint; the model and the train state are read all the same."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._states = {step: state_at(step) for step in STEPS}
    save_all(folder / "saved", self._states)

  def __call__(self, rng: Random) -> bool:
    """Whether the damage was noticed: some of it is in bytes that no array uses."""
    folder = shutil.copytree(self._folder / "saved", self._folder / "damaged")
    what = damage_at_random(folder, rng)
    try:
      return bool(check_survived(folder, self._states))
    except Exception as error:
      raise AssertionError(what) from error
    finally:
      shutil.rmtree(folder)
