"""The folders of cached files."""

from pathlib import Path

import pytest

from clip_jax.cli import cache


@pytest.fixture
def linux(monkeypatch):
  """Computes folders as on Linux, whatever this machine runs."""
  from platformdirs.unix import Unix

  monkeypatch.setattr("platformdirs.PlatformDirs", Unix)
  return monkeypatch


def test_xdg_cache_home_is_honoured(linux, tmp_path):
  linux.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.caches() == tmp_path / "clip_jax"
  assert cache.compiled_programs().parent == tmp_path / "clip_jax"


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_the_users_cache_folder(linux, value, tmp_path):
  linux.setenv("HOME", str(tmp_path))
  if value is None:
    linux.delenv("XDG_CACHE_HOME", raising=False)
  else:
    linux.setenv("XDG_CACHE_HOME", value)
  assert cache.caches() == Path(tmp_path, ".cache/clip_jax")


def test_computing_a_folder_does_not_create_it(linux, tmp_path):
  linux.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
  cache.compiled_programs()
  assert not (tmp_path / "new").exists()
