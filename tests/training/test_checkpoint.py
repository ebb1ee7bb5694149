"""Saving and restoring checkpoints, on the same mesh and on another."""

import contextlib
import errno
import resource
import time

import jax
from ml_collections.config_dict import ConfigDict
import optax
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.model.transfer import check_same_arrays
from clip_jax.objectives.clip import Clip
from clip_jax.parallel import mesh as mesh_lib, partition
from clip_jax.training import state as state_lib
from clip_jax.training.checkpoint import Checkpoints, report_full_disk
from clip_jax.training.experiment import Training
from tiny import image_tower, largest_difference, learner


def abstract(state, mesh):
  shardings = partition.state_shardings(state, mesh, min_size=64)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )


def new_state(**changes):
  return state_lib.init_train_state(learner(**changes), optax.adam(1e-3))


def test_restore_from_one_device_to_eight_is_bit_exact(tmp_path):
  state, config = new_state(), ConfigDict({"objective": call(Clip)})
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() is None
  checkpoints.save(3, state, config)
  checkpoints.close()
  again = Checkpoints(tmp_path)
  assert again.latest() == 3
  restored = again.restore(abstract(state, mesh_lib.make_mesh(2, 4)))
  assert largest_difference(restored, state) == 0
  kernel = restored.params["model"]["image"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
  assert len({str(s.index) for s in kernel.addressable_shards}) == 4
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert again.config().to_dict() == config.to_dict()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_raises_and_keeps_earlier_checkpoints(tmp_path, caplog, capfd):
  state = new_state()
  checkpoints = Checkpoints(tmp_path / "checkpoints", max_checkpoints=1)
  checkpoints.save(1, state, ConfigDict({}))
  checkpoints.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # Simulates a quota.
  try:
    with pytest.raises(
      UserError,
      match=r"(?s)No space left to write in .* intact, the "
      r"newest is of step 1\. Free some space",
    ):
      with report_full_disk(tmp_path):
        checkpoints.save(2, new_state(seed=1), ConfigDict({}))
        checkpoints.save(3, new_state(seed=1), ConfigDict({}))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with contextlib.suppress(Exception):
      checkpoints.close()
  assert not caplog.records and capfd.readouterr() == ("", "")
  again = Checkpoints(tmp_path / "checkpoints")
  assert again.latest() == 1
  assert largest_difference(again.restore(abstract(state, mesh_lib.make_mesh())), state) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_check_raises_the_error_of_a_background_save(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, new_state(), ConfigDict({}))
  checkpoints.check()  # Does not raise for a save in progress or completed.
  checkpoints.wait()
  checkpoints.check()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    checkpoints.save(2, new_state(), ConfigDict({}))
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED|too large"):
      for _ in range(300):
        checkpoints.check()
        time.sleep(0.1)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with contextlib.suppress(Exception):
      checkpoints.close()


def test_full_disk_before_the_first_save_is_reported(tmp_path):
  with pytest.raises(UserError, match="No space left.*quota exceeded\nNo checkpoint was saved yet"):
    with report_full_disk(tmp_path):
      raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_other_errors_are_not_converted(tmp_path):
  for error in (OSError(errno.EIO, "broken"), ValueError("os_error_code='5'")):
    with pytest.raises(type(error)) as caught, report_full_disk(tmp_path):
      raise error
    assert caught.value is error


def test_only_the_newest_checkpoints_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, max_checkpoints=2)
  for step in (1, 2, 3):
    checkpoints.save(step, new_state(), ConfigDict({}))
  checkpoints.close()
  assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 3]


@pytest.mark.parametrize("number", [0, -1, None, 1.5])
def test_a_run_that_would_keep_no_checkpoint_is_refused(number):
  with pytest.raises(UserError, match="max_checkpoints is .* at least 1"):
    Training(steps=1, max_checkpoints=number)
  with pytest.raises(UserError, match="max_checkpoints is .* at least 1"):
    build(call(Training, steps=1, max_checkpoints=number))


def test_checkpoint_of_a_different_model_error_lists_differences(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, new_state(), ConfigDict({}))
  other = new_state(image=image_tower(width=64))
  with pytest.raises(UserError, match=r"different model; .* arrays differ:\n.*saved .*, expected"):
    checkpoints.restore(abstract(other, mesh_lib.make_mesh()))
  checkpoints.close()


def test_differences_are_listed_up_to_a_maximum():
  saved = {"a": (1,), "b": (2,), "c": (3,)}
  wanted = {"a": (1,), "b": (4,), "d": (5,)}
  with pytest.raises(
    UserError,
    match=r"(?s)3 arrays differ:\n  b: saved \(2,\), expected \(4,\)\n"
    r"  d: not saved.*and 1 more",
  ):
    check_same_arrays(saved, wanted, "x", most=2)
  check_same_arrays(saved, dict(reversed(saved.items())), "x")
