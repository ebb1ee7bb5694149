"""Damaged checkpoints are named, and the newest whole one before them is used."""

import dataclasses
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest

from clip_jax.errors import UserError
from clip_jax.pretrained import run_checkpoint
from clip_jax.training import state as state_lib
from clip_jax.training.checkpoint import Checkpoints
from faults.checkpoints import (
  CONFIG,
  STEPS,
  abstract,
  check_survived,
  contents,
  read_learner,
  same,
  save_all,
  state_at,
)
from tiny import learner


@pytest.fixture(scope="module")
def states():
  return {step: state_at(step) for step in STEPS}


@pytest.fixture(scope="module")
def saved(states, tmp_path_factory):
  """A folder with two checkpoints, which no test changes."""
  folder = tmp_path_factory.mktemp("saved")
  save_all(folder, states)
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "checkpoints")


def test_every_bit_of_some_bytes_of_the_arrays_is_covered(folder, states):
  """Compressed chunks may have no checksum of their own; those of the arrays are used then."""
  path = max((folder / "7/state").rglob("d/*"), key=lambda p: p.stat().st_size)
  content, used = path.read_bytes(), 0
  for i in range(1000, len(content), len(content) // 12):
    path.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
    found = read_learner(folder, states[7])
    assert same(found.value[1], states[found.checkpoint.step].params)
    used += found.checkpoint.step == 3
  assert used >= 3  # The others are in the state of the optimizer, which readers leave alone.


@pytest.mark.parametrize(
  "file, message",
  [
    ("_CHECKPOINT_METADATA", "its _CHECKPOINT_METADATA is not JSON"),
    ("state/_METADATA", "its _METADATA is not JSON"),
    ("config/metadata", "its config/metadata is not JSON"),
    ("checksums/metadata", "its checksums/metadata is not JSON"),
    ("state/manifest.ocdbt", "cannot be read"),
  ],
)
def test_an_empty_file_is_named(folder, states, file, message):
  (folder / "7" / file).write_bytes(b"")
  (line,) = check_survived(folder, states)
  assert message in line and "Using that of step 3 instead; nothing is deleted." in line
  assert (folder / "damaged-7").is_dir()


def test_a_changed_config_is_damage(folder, states):
  path = folder / "7/config/metadata"
  path.write_text(path.read_text().replace("0.07", "0.08"))
  found = read_learner(folder, states[7])
  assert found.damaged == {7: "its config does not match its checksum"}


def test_half_copied_and_stray_folders_are_named(folder, states):
  shutil.copytree(folder / "7", folder / "12")
  shutil.copytree(folder / "3", folder / "11")
  shutil.rmtree(folder / "11/checksums")
  (folder / "10").mkdir()
  shutil.rmtree(folder / "7/state/ocdbt.process_0")
  (folder / "20").write_text("A file is not a checkpoint.")
  (folder / "021").mkdir()
  (folder / "²").mkdir()
  before = contents(folder)
  assert read_learner(folder, states[7]).damaged.keys() == {12, 11, 10, 7}
  checkpoints = Checkpoints(folder)
  assert int(checkpoints.restore(abstract(states[7])).step) == 3
  for line, words in zip(
    checkpoints.damage,
    (
      "12 is damaged: it is a copy of the checkpoint of step 7",
      "11 is damaged: it has no checksums/metadata",
      "10 is damaged: it has no _CHECKPOINT_METADATA",
      "7 is damaged: its ",
    ),
    strict=True,
  ):
    assert words in line
  assert contents(folder) == before
  # The same steps can be saved again, none of the damaged folders counts as a checkpoint or goes.
  for step in (7, 12, 15):
    checkpoints.save(step, states[7], CONFIG)
  checkpoints.close()
  assert run_checkpoint.steps_in(folder) == [12, 15]
  assert sorted(p.name for p in folder.glob("damaged-*")) == [
    "damaged-10",
    "damaged-11",
    "damaged-12",
    "damaged-7",
  ]


def test_a_later_folder_copied_during_the_run_stops_no_save(folder, states):
  checkpoints = Checkpoints(folder)
  checkpoints.restore(abstract(states[7]))
  checkpoints.save(8, states[7], CONFIG)
  (folder / "9").mkdir()
  (folder / "9/note").write_text("mine")
  checkpoints.save(9, states[7], CONFIG)
  checkpoints.close()
  assert run_checkpoint.steps_in(folder) == [8, 9]
  assert (folder / "replaced-9/note").read_text() == "mine"


def test_the_same_damage_twice_is_kept_twice(folder, states):
  for name in ("damaged-7", "damaged-7-1"):
    checkpoints = Checkpoints(folder)
    (folder / "7/state/_METADATA").write_bytes(b"")
    assert int(checkpoints.restore(abstract(states[7])).step) == 3
    assert (folder / name).is_dir()
    checkpoints.save(7, states[7], CONFIG)
    checkpoints.close()


def test_no_whole_checkpoint_is_an_error_that_lists_them_all(folder, states):
  for step in STEPS:
    (folder / str(step) / "state/_METADATA").unlink()
  before = sorted(folder.rglob("*"))
  for read in (
    lambda: read_learner(folder, states[7]),
    lambda: Checkpoints(folder).restore(abstract(states[7])),
  ):
    with pytest.raises(
      UserError, match=r"(?s)No .* whole:\n  step 7: it has no.*\n  step 3: it ha"
    ):
      read()
  assert sorted(folder.rglob("*")) == before


def test_a_different_model_is_not_damage(folder, states):
  other = abstract(state_lib.init_train_state(learner(embed_dim=24), optax.adam(1e-3)))
  with pytest.raises(UserError, match="7 is of a different model"):
    Checkpoints(folder).restore(other)
  assert run_checkpoint.steps_in(folder) == [3, 7]


def test_another_dtype_is_cast_after_the_check(folder, states):
  wanted = abstract(states[7])
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), wanted.params
  )
  restored = Checkpoints(folder).restore(dataclasses.replace(wanted, params=half))
  cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), states[7].params)
  assert same(restored.params, cast) and {x.dtype for x in jax.tree.leaves(restored.params)} == {
    jnp.dtype(jnp.bfloat16)
  }


def without_checksums(folder, step):
  """Makes a checkpoint what it was before there were checksums."""
  shutil.rmtree(folder / str(step) / "checksums")
  path = folder / str(step) / "_CHECKPOINT_METADATA"
  plain = json.loads(path.read_text())
  del plain["item_handlers"]["checksums"]
  path.write_text(json.dumps(plain))


def test_checkpoints_without_checksums_are_restored(folder, states):
  without_checksums(folder, 7)
  checkpoints = Checkpoints(folder)
  assert same(checkpoints.restore(abstract(states[7])), states[7])
  assert "step 7, which has no checksums" in checkpoints.doubt()
  assert same(read_learner(folder, states[7]).value[1], states[7].params)
  without_checksums(folder, 3)
  (folder / "3").rename(folder / "9")
  checkpoints = Checkpoints(folder)
  assert int(checkpoints.restore(abstract(states[7])).step) == 7
  assert "9 is damaged: it is of step 3" in checkpoints.damage[0]


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_nan_in_a_checkpoint_without_checksums_is_damage(folder, states, part):
  broken = jax.tree.map(lambda x: x, getattr(states[7], part))
  leaves, tree = jax.tree.flatten(broken)
  leaves[1] = leaves[1].at[0].set(jnp.nan)
  checkpoints = Checkpoints(folder)
  state = dataclasses.replace(states[7], step=jnp.int32(9), **{part: tree.unflatten(leaves)})
  checkpoints.save(9, state, CONFIG)
  checkpoints.close()
  shutil.copytree(folder / "9", folder / "8")
  without_checksums(folder, 9)
  checkpoints = Checkpoints(folder)
  assert int(checkpoints.restore(abstract(states[7])).step) == 7
  (nan, copy) = checkpoints.damage
  assert "9 is damaged: it has no checksums, and" in nan and f"its {part}/" in nan
  assert "8 is damaged: it is a copy of the checkpoint of step 9" in copy
  assert checkpoints.doubt() == ""


def test_a_step_that_the_run_deletes_while_it_is_read_is_not_damage(folder, states):
  """The trainer saves a newer step, and then deletes the one that is being read."""
  real = run_checkpoint.RunCheckpoint.arrays
  read = []

  def arrays(checkpoint, wanted):
    read.append(checkpoint.step)
    if len(read) == 1:
      shutil.copytree(folder / "3", folder / "30")
      (folder / "3").rename(folder / "gone")
      checkpoints = Checkpoints(folder, max_checkpoints=1)
      checkpoints.save(31, states[7], CONFIG)
      checkpoints.close()
      assert run_checkpoint.steps_in(folder) == [31]
    return real(checkpoint, wanted)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_checkpoint.RunCheckpoint, "arrays", arrays)
    found = read_learner(folder, states[7])
  assert read == [7, 31] and found.damaged == {}
  assert same(found.value[1], states[7].params)


def test_reading_gives_up_if_every_checkpoint_goes_before_it_is_read(tmp_path):
  newest = [0]

  def read(checkpoint):
    checkpoint.path.rmdir()
    newest[0] += 1
    (tmp_path / str(newest[0])).mkdir()
    raise run_checkpoint.DamagedError("it is gone")

  (tmp_path / "0").mkdir()
  with pytest.raises(UserError, match="faster than they can be read. Set --config.train.max_ch"):
    run_checkpoint.read_newest(tmp_path, read)


def test_an_error_of_the_machine_is_not_damage(folder, states, monkeypatch):
  def denied(path):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(Path, "read_bytes", denied)
  with pytest.raises(UserError, match="_CHECKPOINT_METADATA cannot be read: .*Permission denied"):
    read_learner(folder, states[7])
