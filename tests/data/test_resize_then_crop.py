"""ResizeThenCrop matches resizing and then cropping with Pillow."""

import numpy as np
from PIL import Image
import pytest

from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.errors import UserError


def picture(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def resized(pixels, height, width, how=Image.Resampling.BICUBIC):
  return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def test_shortest_fits_the_shorter_side_and_crops_the_centre():
  x = picture(40, 61)
  whole = resized(x, 16, 24)  # 61 * 16 / 40 = 24.4, rounded down.
  np.testing.assert_array_equal(ResizeThenCrop(16)(x), whole[:, 4:20])
  np.testing.assert_array_equal(
    ResizeThenCrop(16)(x.swapaxes(0, 1)), resized(x.swapaxes(0, 1), 24, 16)[4:20]
  )


def test_side_can_exceed_the_crop():
  x = picture(40, 60)
  whole = resized(x, 20, 30, Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(
    ResizeThenCrop(16, side=20, interpolation="bilinear")(x), whole[2:18, 7:23]
  )


def test_squash_stretches_and_longest_pads():
  x = picture(40, 60)
  np.testing.assert_array_equal(ResizeThenCrop((16, 12), "squash")(x), resized(x, 16, 12))
  padded = np.zeros((30, 30, 3), np.uint8)
  padded[5:25] = resized(x, 20, 30)
  np.testing.assert_array_equal(ResizeThenCrop(30, "longest")(x), padded)
  np.testing.assert_array_equal(
    ResizeThenCrop((20, 15), "shortest")(x), resized(x, 20, 30)[:, 8:23]
  )


def test_invalid_arguments_raise():
  with pytest.raises(
    UserError, match="resize_mode is 'stretch'; ResizeThenCrop expects 'shortest'"
  ):
    ResizeThenCrop(16, "stretch")
  with pytest.raises(UserError, match="interpolation is 'sinc'; ResizeThenCrop expects 'nearest'"):
    ResizeThenCrop(16, interpolation="sinc")
