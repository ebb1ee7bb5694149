"""Reading and writing .safetensors files."""

import json
import mmap

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.errors import UserError
from clip_jax.pretrained import safetensors_file


def test_arrays_survive_a_round_trip(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    "a/b": rng.normal(size=(3, 4)).astype(np.float32),
    "half": np.float16([1.5]),
    "brain": np.ones((2, 2), ml_dtypes.bfloat16) * 3,
    "none": np.zeros((0, 3), np.float32),
    "number": np.array(7, np.int64),
    "turned": rng.normal(size=(4, 5)).T,
  }
  safetensors_file.write(tmp_path / "x", arrays)
  back = safetensors_file.read(tmp_path / "x")
  assert back.keys() == arrays.keys()
  for name, x in arrays.items():
    assert back[name].dtype == x.dtype and back[name].shape == x.shape
    np.testing.assert_array_equal(back[name], x)


def test_a_file_assembled_by_hand_is_read(tmp_path):
  """The format is an 8-byte header length, a JSON header and little-endian numbers."""
  header = json.dumps(
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"by": "hand"}}
  ).encode()
  numbers = bytes.fromhex("0000803f000000c0")  # 1, -2
  (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + numbers)
  np.testing.assert_array_equal(safetensors_file.read(tmp_path / "x")["x"], [1, -2])


def test_arrays_are_views_of_a_memory_map(tmp_path):
  safetensors_file.write(tmp_path / "x", {"x": np.ones(100, np.float32)})
  x = safetensors_file.read(tmp_path / "x")["x"]
  while isinstance(x.base, np.ndarray):
    x = x.base
  assert isinstance(x.base, mmap.mmap) and not x.flags.writeable


def test_the_library_reads_the_same_arrays(tmp_path):
  arrays = {name: np.full((k, 3), k, np.float16) for k, name in enumerate("cab", 1)}
  arrays["turned"] = np.arange(6.0).reshape(2, 3).T  # The library itself would write it as it is.
  safetensors_file.write(tmp_path / "x", arrays)
  for read in (safetensors.numpy.load_file, safetensors_file.read):
    back = read(tmp_path / "x")
    assert back.keys() == arrays.keys()
    for name, x in arrays.items():
      np.testing.assert_array_equal(back[name], x)


def test_written_files_have_the_permissions_of_other_files(tmp_path):
  (tmp_path / "usual").touch()
  safetensors_file.write(tmp_path / "x", {"x": np.ones(1)})
  assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_truncated_and_foreign_files_are_errors(tmp_path):
  file = tmp_path / "x.safetensors"
  safetensors_file.write(file, {"x": np.ones(100, np.float32)})
  whole = file.read_bytes()
  for broken, reason in (
    (whole[:-4], "file not fully covered"),
    (whole[:6], "header too small"),
    (b"", "header too small"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "header too large"),
    ((5).to_bytes(8, "little") + b"hello", "JSON"),
  ):
    file.write_bytes(broken)
    with pytest.raises(
      UserError, match=f"x.safetensors is truncated .* {reason}.* Git LFS pointer"
    ):
      safetensors_file.read(file)


def test_an_unsupported_dtype_is_an_error(tmp_path):
  safetensors_file.write(tmp_path / "x", {"x": np.ones(2, np.int16)})
  whole = (tmp_path / "x").read_bytes()
  (tmp_path / "x").write_bytes(whole.replace(b'"I16"', b'"U16"'))
  with pytest.raises(UserError, match="x has dtype U16, which is not one of F64, F32"):
    safetensors_file.read(tmp_path / "x")
