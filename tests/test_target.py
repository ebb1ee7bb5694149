"""The target platform of a trace, and the dtype to compute in."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh
import pytest

from clip_jax.errors import UserError
from clip_jax.target import anywhere, computed_in, platform


def chips(kind):
  return AbstractMesh((4,), ("data",), abstract_device=AbstractDevice(
      device_kind=kind, num_cores=None, platform=kind))


def test_platform_follows_the_mesh_and_else_the_default_backend(monkeypatch):
  assert (platform(), computed_in("auto")) == ("cpu", "float32")
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert (platform(), computed_in("auto")) == ("tpu", "bfloat16")
    assert jax.eval_shape(lambda x: x.astype(computed_in("auto")), 1.0).dtype == "bfloat16"
    with anywhere():
      assert (platform(), computed_in("auto")) == ("cpu", "float32")
    assert platform() == "tpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert (platform(), computed_in("auto")) == ("gpu", "bfloat16")


def test_explicit_dtypes_do_not_depend_on_the_platform():
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert computed_in("float32") == "float32"
  assert computed_in("bfloat16") == "bfloat16"


def test_unknown_dtype_lists_the_known_ones():
  with pytest.raises(UserError, match="Unknown dtype='bf16'; choose from auto, bfloat16"):
    computed_in("bf16")
