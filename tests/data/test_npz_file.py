"""Tests of reading .npz files: equal to NumPy's, within limits, and never a traceback."""

import os
import struct
import zipfile

import numpy as np
import pytest

from clip_jax.data import npz_file
from clip_jax.data.npz_file import UnreadableNpz, read_npz
from clip_jax.data.untrusted import NotAFile

ARRAYS = {
  "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "f": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
  "s": np.array(["x", "yü"]),
  "scalar": np.array(7, np.float16),
  "empty": np.zeros((0, 3)),
  "b/c": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_equal_those_of_numpy(tmp_path, save):
  save(tmp_path / "x.npz", **ARRAYS)
  got = read_npz(tmp_path / "x.npz")
  assert list(got) == list(ARRAYS)
  for name, x in np.load(tmp_path / "x.npz").items():
    np.testing.assert_array_equal(got[name], x, strict=True)
  assert list(read_npz(tmp_path / "x.npz", lambda names: ["s", "a"])) == ["s", "a"]
  with pytest.raises(UnreadableNpz, match="no array 'none'"):
    read_npz(tmp_path / "x.npz", lambda names: ["none"])


def npy(shape, descr="<f4", data=b"", version=(1, 0), pad=0):
  text = (
    f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode() + b" " * pad
  )
  length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
  return b"\x93NUMPY" + bytes(version) + length + text + data


@pytest.mark.parametrize(
  "content",
  [
    npy((10**12,)),
    npy((2**62, 4)),
    npy((-1, -4), data=bytes(16)),
    npy((4,), data=bytes(15)),
    npy((4,), data=bytes(17)),
    npy((1,), "|O", b"cos\nsystem\n(S'true'\ntR."),
    npy((1,), [("x", "<f4")], bytes(4)),
    npy((1,), "<U1000000000"),
    npy((1,), data=bytes(4), version=(2, 0), pad=2**24),
    npy((1,), data=bytes(4), version=(3, 0)),
    npy("(" * 5000),
    b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    b"",
    b"text",
  ],
  ids=range(14),
)
def test_malformed_arrays_are_rejected_without_allocating_them(tmp_path, content):
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
    file.writestr("x.npy", content)
  with pytest.raises(UnreadableNpz):
    read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_rejected_unread(
  tmp_path, method, monkeypatch
):
  with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as file:
    file.writestr("x.npy", npy((2**25,), data=bytes(2**27)))
  monkeypatch.setattr(npz_file, "read_member", lambda *_: pytest.fail("It is unpacked."))
  with pytest.raises(UnreadableNpz, match="would unpack to 134"):
    read_npz(tmp_path / "x.npz")


def test_fifos_and_missing_files_are_errors_of_the_system(tmp_path):
  os.mkfifo(tmp_path / "fifo.npz")
  with pytest.raises(NotAFile):
    read_npz(tmp_path / "fifo.npz")
  with pytest.raises(FileNotFoundError):
    read_npz(tmp_path / "none.npz")
