"""The target platform of a trace, and the dtype to compute in."""

import jax
import pytest

from clip_jax.errors import UserError
from clip_jax.nn.target import any_platform, resolve_dtype, target_platform
from tiny import chips


def test_platform_follows_the_mesh_and_else_the_default_backend(monkeypatch):
  assert (target_platform(), resolve_dtype("auto")) == ("cpu", "float32")
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert (target_platform(), resolve_dtype("auto")) == ("tpu", "bfloat16")
    assert jax.eval_shape(lambda x: x.astype(resolve_dtype("auto")), 1.0).dtype == "bfloat16"
    with any_platform():
      assert (target_platform(), resolve_dtype("auto")) == ("cpu", "float32")
    assert target_platform() == "tpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert (target_platform(), resolve_dtype("auto")) == ("gpu", "bfloat16")


def test_explicit_dtypes_do_not_depend_on_the_platform():
  with jax.sharding.use_abstract_mesh(chips("tpu")):
    assert resolve_dtype("float32") == "float32"
  assert resolve_dtype("bfloat16") == "bfloat16"


def test_unknown_dtype_lists_the_known_ones():
  with pytest.raises(UserError, match="Unknown dtype='bf16'; choose from auto, bfloat16"):
    resolve_dtype("bf16")
