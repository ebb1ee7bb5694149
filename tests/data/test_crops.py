"""Crops have the defined boxes and, unless a faster mode is chosen, exactly Pillow's pixels."""

import io

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.decode import Picture
from clip_jax.errors import UserError


def scene(height, width, seed=0):
  """uint8 [H, W, 3], smooth with a little noise, like a photograph."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(256, size=(15, 20, 3), dtype=np.uint8)
  smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC)).astype(int)
  return (smooth + rng.integers(-8, 9, size=smooth.shape)).clip(0, 255).astype(np.uint8)


def mean_difference(a, b):
  return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize("height, width", [(60, 90), (300, 200), (480, 640)])
@pytest.mark.parametrize("size", [64, (32, 48)])
def test_random_crops_match_pillow(height, width, size):
  image = scene(height, width)
  data = simplejpeg.encode_jpeg(image, 90)
  crop = RandomResizedCrop(size, jpeg_draft=False)
  for seed in range(5):
    box = crop.box(height, width, np.random.default_rng(seed))
    h, w = (size, size) if isinstance(size, int) else size
    for given in (image, data):
      pixels = image if given is image else simplejpeg.decode_jpeg(data)
      expected = np.asarray(Image.fromarray(pixels).crop(box).resize((w, h), Image.BICUBIC))
      np.testing.assert_array_equal(crop(given, np.random.default_rng(seed)), expected)


def test_random_boxes_cover_the_requested_areas_ratios_and_positions():
  crop = RandomResizedCrop(8, scale=(0.1, 0.6), ratio=(0.5, 2))
  rng = np.random.default_rng(0)
  boxes = np.array([crop.box(300, 400, rng) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
  assert (left == 0).any() and (top == 0).any() and (right == 400).any() and (bottom == 300).any()
  share = (right - left) * (bottom - top) / (300 * 400)
  ratio = (right - left) / (bottom - top)
  assert 0.095 < share.min() < 0.12 and 0.55 < share.max() < 0.61
  assert 0.49 < ratio.min() < 0.52 and 1.9 < ratio.max() < 2.04
  assert abs(np.log(ratio[share < 0.3]).mean()) < 0.05  # Wide and tall are equally likely.
  assert abs(((left + right) / 2).mean() - 200) < 5 and abs(((top + bottom) / 2).mean() - 150) < 5


@pytest.mark.parametrize(
  "height, width, box",
  [(10, 1000, (493, 0, 506, 10)), (1000, 10, (0, 493, 10, 506)), (50, 50, (0, 0, 50, 50))],
)
def test_the_fallback_is_the_largest_central_box(height, width, box):
  crop = RandomResizedCrop(8, scale=(1, 1), ratio=(3 / 4, 4 / 3))

  class Never:
    def uniform(self, low, high, size):
      return np.full(size, high if size == 10 and high == 1 else np.log(4 / 3))

    def random(self, n):
      return np.zeros(n)

  assert crop.box(height, width, Never()) == box


def test_random_crops_of_tiny_images():
  for shape in ((1, 1, 3), (2, 7, 3), (1, 40, 3)):
    for seed in range(20):
      got = RandomResizedCrop(16)(np.full(shape, 77, np.uint8), np.random.default_rng(seed))
      assert got.shape == (16, 16, 3) and (got == 77).all()


@pytest.mark.parametrize("height, width, most", [(480, 640, 0.7), (1203, 1601, 0.9)])
def test_decoding_at_a_reduced_size_barely_changes_pixels(height, width, most):
  data = simplejpeg.encode_jpeg(scene(height, width), 90)
  for seed in range(5):
    exact, fast = (
      RandomResizedCrop(112, jpeg_draft=shrink)(data, np.random.default_rng(seed))
      for shrink in (False, True)
    )
    assert 0 < mean_difference(exact, fast) < most
    shifted = np.roll(exact, 1, axis=1)
    assert mean_difference(exact, fast) < mean_difference(exact, shifted) / 4


@pytest.mark.parametrize("height, width", [(300, 400), (480, 640), (1203, 1601)])
@pytest.mark.parametrize("encoded", [True, False])
def test_fast_resizing_barely_changes_pixels(height, width, encoded):
  image = scene(height, width)
  image = simplejpeg.encode_jpeg(image, 90) if encoded else image
  for seed in range(5):
    exact, fast = (
      RandomResizedCrop(112, jpeg_draft=False, interpolation=resize)(
        image, np.random.default_rng(seed)
      )
      for resize in ("bicubic", "fast")
    )
    shrunk = RandomResizedCrop(112, interpolation="fast")(image, np.random.default_rng(seed))
    for other in (fast, shrunk):
      assert 0 < mean_difference(exact, other) < 2
      for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        assert mean_difference(exact, other) < mean_difference(exact, np.roll(other, shift, (0, 1)))


def test_boxes_below_twice_the_output_size_are_decoded_in_full():
  data = simplejpeg.encode_jpeg(scene(120, 120), 90)
  crops = [
    RandomResizedCrop(64, jpeg_draft=shrink)(data, np.random.default_rng(1))
    for shrink in (False, True)
  ]
  np.testing.assert_array_equal(*crops)


def test_crops_of_a_picture_equal_crops_of_its_bytes():
  data = simplejpeg.encode_jpeg(scene(480, 640), 90)
  picture = Picture(data)
  for seed, size in enumerate((32, 64, 200)):
    np.testing.assert_array_equal(
      RandomResizedCrop(size)(picture, np.random.default_rng(seed)),
      RandomResizedCrop(size)(data, np.random.default_rng(seed)),
    )


def test_squash_matches_pillows_resize():
  image = scene(90, 60)
  np.testing.assert_array_equal(
    Resize((32, 48))(image), np.asarray(Image.fromarray(image).resize((48, 32), Image.BICUBIC))
  )


@pytest.mark.parametrize("mode", ["squash", "crop"])
@pytest.mark.parametrize(
  "height, width, size", [(301, 203, 64), (120, 90, 200), (77, 240, (16, 32))]
)
@pytest.mark.parametrize("central", [1.0, 0.875])
def test_central_boxes_match_pillows_resize_with_a_box(mode, height, width, size, central):
  image = scene(height, width)
  resize = Resize(size, mode, central)
  h, w = (size, size) if isinstance(size, int) else size
  expected = Image.fromarray(image).resize((w, h), Image.BICUBIC, box=resize.box(height, width))
  np.testing.assert_array_equal(resize(image), np.asarray(expected))


def test_crop_equals_resizing_the_shorter_side_then_cropping_the_centre():
  """Uses sides that divide evenly, so that the two steps need no rounding."""
  image = scene(256, 384)
  two_steps = np.asarray(Image.fromarray(image).resize((192, 128), Image.BICUBIC))[8:120, 40:152]
  np.testing.assert_array_equal(Resize(112, "crop", center_crop=0.875)(image), two_steps)


def test_the_central_box_keeps_the_aspect_ratio_of_the_crop():
  left, top, right, bottom = Resize((10, 20), "crop", 0.5).box(400, 400)
  assert (left, top, right, bottom) == (100, 150, 300, 250)
  assert Resize(10, "crop").box(300, 500) == (100, 0, 400, 300)
  assert Resize(10, center_crop=0.5).box(300, 500) == (125, 75, 375, 225)


def test_pad_keeps_the_whole_image_on_white():
  image = scene(60, 90) // 2
  padded = Resize(90, "pad")(image)
  assert (padded[:15] == 255).all() and (padded[75:] == 255).all()
  np.testing.assert_array_equal(padded[15:75], image)
  assert Resize((8, 64), "pad")(np.zeros((100, 1, 3), np.uint8)).min() == 0


def test_resize_ignores_rng_and_takes_encoded_bytes():
  image = scene(64, 64)
  out = io.BytesIO()
  Image.fromarray(image).save(out, "PNG")
  np.testing.assert_array_equal(
    Resize(32)(out.getvalue(), np.random.default_rng(0)), Resize(32)(image)
  )


def test_resize_with_shrink_barely_changes_pixels():
  data = simplejpeg.encode_jpeg(scene(1203, 1601), 90)
  for mode in ("squash", "crop", "pad"):
    exact, fast = (Resize(112, mode, 0.875, jpeg_draft=shrink)(data) for shrink in (False, True))
    assert 0 < mean_difference(exact, fast) < 0.9


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: RandomResizedCrop(0), "size is 0; RandomResizedCrop expects an integer of at least 1"),
    (lambda: RandomResizedCrop(8, scale=(0, 1)), r"scale is \(0, 1\); RandomResizedCrop expects"),
    (lambda: RandomResizedCrop(8, scale=(0.5, 1.5)), "at most 1"),
    (
      lambda: RandomResizedCrop(8, interpolation="slow"),
      "interpolation is 'slow'; RandomResizedCrop expects 'bicubic', 'bilinear'",
    ),
    (lambda: RandomResizedCrop(8, ratio=(2, 1)), r"ratio \(2, 1\) is not a range"),
    (lambda: Resize((0, 3)), r"size is \(0, 3\); Resize expects"),
    (lambda: RandomResizedCrop(8, resize_mode="crop"), "resize_mode is 'crop'; .* 'keep_aspect'"),
    (lambda: Resize(8, "stretch"), "resize_mode is 'stretch'; Resize expects"),
    (
      lambda: Resize(8, center_crop=0),
      "center_crop is 0; Resize expects a number above 0 and at most 1",
    ),
  ],
)
def test_invalid_arguments_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_boxes_can_refer_to_the_squashed_image():
  crop = RandomResizedCrop(8, scale=(0.3, 0.9), ratio=(0.5, 2.0), resize_mode="squash")
  rng = np.random.default_rng(0)
  shares, ratios = [], []
  for _ in range(500):
    left, top, right, bottom = crop.box(1000, 4000, rng)
    h, w = (bottom - top) / 1000, (right - left) / 4000  # In the unit square.
    shares.append(h * w)
    ratios.append(w / h)
  assert 0.299 < min(shares) < 0.33 and 0.8 < max(shares) < 0.901
  assert 0.49 < min(ratios) < 0.6 and 1.7 < max(ratios) < 2.01
  assert RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1), resize_mode="squash").box(
    30, 90, rng
  ) == (
    0,
    0,
    90,
    30,
  )
