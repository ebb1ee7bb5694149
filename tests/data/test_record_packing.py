"""Packed records: pixels among other fields."""

import msgpack
import numpy as np
import pytest

from clip_jax.data.record_packing import pack, unpack
from clip_jax.errors import UserError


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_come_back(channels):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
  record = {"image": pixels[:, ::-1], "text": ["a", "b"], "n": 3, "blob": b"\0\1"}
  found = unpack(pack(record))
  image = found.pop("image")
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, pixels[:, ::-1], strict=True)
  assert found == {"text": ["a", "b"], "n": 3, "blob": b"\0\1"}


def test_grey_pixels_take_a_third_of_the_space():
  grey = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8).repeat(3, 2)
  packed = pack({"image": grey})
  assert len(packed) < 32 * 32 + 40
  np.testing.assert_array_equal(unpack(packed)["image"], grey, strict=True)


def test_records_without_pixels_are_plain_messagepack():
  record = {"image": b"encoded", "text": "a", "label": 2}
  assert pack(record) == msgpack.packb(record)


@pytest.mark.parametrize(
  "content, message",
  [
    (msgpack.packb({"image": msgpack.ExtType(1, b"\2\0\0\0\2\0\0\0\3\0\0\0abc")}), "damaged"),
    (msgpack.packb({"image": msgpack.ExtType(1, b"")}), "damaged"),
    (msgpack.packb({"image": msgpack.ExtType(1, b"\1")}), "damaged"),
    (msgpack.packb({"image": msgpack.ExtType(9, b"abc")}), "unknown type 9"),
  ],
)
def test_damaged_pixels_are_named(content, message):
  with pytest.raises(UserError, match=message):
    unpack(content)


@pytest.mark.parametrize("value", [np.zeros((2, 2), np.float32), np.zeros(3, np.uint8), object()])
def test_what_no_record_can_hold_is_refused(value):
  with pytest.raises(TypeError, match="a record cannot hold a"):
    pack({"image": value})
