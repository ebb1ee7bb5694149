"""The cache of compiled programs survives what interrupts writing it."""

import errno
import os

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.parallel import jax_private


@pytest.fixture
def compiled(tmp_path, monkeypatch):
  """A function that compiles the same program anew, or reads it from the cache in tmp_path."""
  from jax._src import compilation_cache as private
  from jax._src.lru_cache import LRUCache

  # So that both come back after the test.
  monkeypatch.setattr(LRUCache, "put", LRUCache.put)
  monkeypatch.setattr(private, "get_executable_and_time", private.get_executable_and_time)
  jax_private.protect_compiled_programs()
  jax_private.protect_compiled_programs()  # The second time does nothing.
  changes = {
    "jax_compilation_cache_dir": str(tmp_path),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in changes}
  compilation_cache.reset_cache()
  for name, value in changes.items():
    jax.config.update(name, value)

  def compile_it():
    def program(x):
      return jnp.sin(x) * 2 + 1

    return jax.jit(program).lower(jax.ShapeDtypeStruct((7,), jnp.float32)).compile()

  yield compile_it
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "half"])
def test_a_damaged_program_is_compiled_and_written_again(compiled, tmp_path, recwarn, content):
  x = np.arange(7, dtype=np.float32)
  wanted = np.asarray(compiled()(x))
  (file,) = tmp_path.iterdir()
  good = file.read_bytes()
  file.write_bytes(good[: len(good) // 2] if content is None else content)
  assert np.array_equal(compiled()(x), wanted)
  assert [path.name for path in tmp_path.iterdir()] == [file.name]
  assert file.stat().st_size > len(good) // 2
  assert np.array_equal(compiled()(x), wanted)
  assert not [w for w in recwarn if "cache" in str(w.message)]


@pytest.mark.parametrize("code, warns", [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_program_is_in_the_cache_whole_or_not_at_all(
  compiled, tmp_path, monkeypatch, recwarn, code, warns
):
  def failing(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr("os.fsync", failing)
  compiled()
  assert list(tmp_path.iterdir()) == []
  assert any(os.strerror(code) in str(w.message) for w in recwarn) == warns  # JAX's own warning.
