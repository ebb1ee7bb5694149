"""What is being traced for."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh
import pytest

from clip_jax.errors import UserError
from clip_jax.target import anywhere, computed_in, platform


def chips(kind):
  return AbstractMesh((4,), ("data",), abstract_device=AbstractDevice(
      device_kind=kind, num_cores=None, platform=kind))


def test_it_is_the_mesh_that_says_and_without_one_the_devices_here(monkeypatch):
  assert (platform(), computed_in("auto")) == ("cpu", "float32")
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert (platform(), computed_in("auto")) == ("tpu", "bfloat16")
    assert jax.eval_shape(lambda x: x.astype(computed_in("auto")), 1.0).dtype == "bfloat16"
    with anywhere():
      assert (platform(), computed_in("auto")) == ("cpu", "float32")
    assert platform() == "tpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert (platform(), computed_in("auto")) == ("gpu", "bfloat16")


def test_what_is_asked_for_is_what_it_is_anywhere():
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert computed_in("float32") == "float32"
  assert computed_in("bfloat16") == "bfloat16"


def test_a_type_that_does_not_exist_lists_those_that_do():
  with pytest.raises(UserError, match="dtype='bf16' does not exist; there are auto, bfloat16"):
    computed_in("bf16")
