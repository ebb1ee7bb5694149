"""Reading and writing .safetensors files."""

import json

import ml_dtypes
import numpy as np
import pytest

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


def test_truncated_and_foreign_files_are_errors(tmp_path):
  file = tmp_path / "x.safetensors"
  safetensors_file.write(file, {"x": np.ones(100, np.float32)})
  whole = file.read_bytes()
  file.write_bytes(whole[:-4])
  with pytest.raises(UserError, match="x.safetensors is truncated: .* Download it again"):
    safetensors_file.read(file)
  file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
  with pytest.raises(UserError, match="not a complete .safetensors file: .* Git LFS pointer"):
    safetensors_file.read(file)
  file.write_bytes((5).to_bytes(8, "little") + b"hello")
  with pytest.raises(UserError, match="its header is not JSON"):
    safetensors_file.read(file)
  file.write_bytes(whole.replace(b'"F32"', b'"F99"'))
  with pytest.raises(UserError, match="x has dtype F99, which is not one of F64, F32"):
    safetensors_file.read(file)
