"""Host augmentations match their definitions, are deterministic, and map uint8 to uint8."""

import colorsys

import numpy as np
from PIL import Image
import pytest

from clip_jax.data.augment.color_jitter import ColorJitter, rotate_hue
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.augment.randaugment import OPERATIONS, RandAugment
from clip_jax.errors import UserError

OUTSIDE = dict(fillcolor=(1, 2, 3), resample=Image.Resampling.NEAREST)


def scene(height=20, width=30, seed=0):
  return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def grey(image):
  """ITU-R 601-2 luma in Pillow's fixed point."""
  return (image.astype(int) @ [19595, 38470, 7471] + 32768) >> 16


def blend(other, image, factor):
  """other + factor (image - other), clipped to [0, 255]."""
  return (other + factor * (image.astype(float) - other)).clip(0, 255)


def applied(name, image, strength, sign=1):
  return np.asarray(OPERATIONS[name](Image.fromarray(image), strength, sign, **OUTSIDE))


@pytest.mark.parametrize(
  "augment",
  [
    HorizontalFlip(),
    ColorJitter(),
    ColorJitter(probability=1, grayscale=0),
    RandAugment(),
    RandAugment(3, 10, resampling="bilinear"),
  ],
)
def test_augmentations_are_deterministic_and_keep_shape_and_dtype(augment):
  image = scene()
  before = image.copy()
  differ = 0
  for seed in range(30):
    a, b = (augment(image, np.random.default_rng(seed)) for _ in range(2))
    assert a.dtype == np.uint8 and a.shape == image.shape
    np.testing.assert_array_equal(a, b)
    differ += (a != image).any()
  np.testing.assert_array_equal(image, before)
  assert differ > 5


def test_flip_happens_with_its_probability():
  image = scene()
  rng = np.random.default_rng(0)
  for probability in (0, 0.3, 1):
    got = [HorizontalFlip(probability)(image, rng) for _ in range(500)]
    mirrored = [np.array_equal(x, image[:, ::-1]) for x in got]
    assert all(m or np.array_equal(x, image) for m, x in zip(mirrored, got))
    assert abs(np.mean(mirrored) - probability) < 0.07


@pytest.mark.parametrize(
  "name, other",
  [
    ("brightness", lambda image: 0),
    ("contrast", lambda image: int(grey(image).mean() + 0.5)),
    ("saturation", lambda image: grey(image)[..., None]),
  ],
)
def test_jitter_blends_with_black_mean_or_grey(name, other):
  image = scene()
  nothing = dict(brightness=0, contrast=0, saturation=0, hue=0, grayscale=0, probability=1)
  jitter = ColorJitter(**{**nothing, name: 1.0})
  factors = set()
  for seed in range(10):
    got = jitter(image, np.random.default_rng(seed)).astype(float)
    fits = [
      f for f in np.linspace(0, 2, 401) if np.abs(blend(other(image), image, f) - got).max() < 2
    ]
    assert fits
    factors.add(round(fits[0], 1))
  assert len(factors) > 4


def test_hue_shift_matches_colorsys():
  image = scene()
  for turn in (-0.1, 0.05, 0.5):
    got = np.asarray(rotate_hue(Image.fromarray(image), turn)) / 255
    for before, after in zip(image.reshape(-1, 3)[:100] / 255, got.reshape(-1, 3)):
      hue, saturation, value = colorsys.rgb_to_hsv(*before)
      if saturation < 0.2 or value < 0.2:
        continue
      moved = colorsys.rgb_to_hsv(*after)[0] - hue - turn
      assert abs((moved + 0.5) % 1 - 0.5) < 0.03
  same = np.asarray(rotate_hue(Image.fromarray(image), 0)).astype(int)
  np.testing.assert_allclose(same, image, atol=6)


def test_jitter_converts_to_grey_with_its_probability():
  image = scene()
  jitter = ColorJitter(probability=0, grayscale=0.2)
  got = [jitter(image, np.random.default_rng(seed)) for seed in range(400)]
  dropped = [(x == grey(image)[..., None]).all() for x in got]
  assert all(d or np.array_equal(x, image) for d, x in zip(dropped, got))
  assert abs(np.mean(dropped) - 0.2) < 0.06


def test_randaugment_has_fourteen_operations():
  assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize"}))
def test_an_operation_at_strength_zero_is_the_identity(name):
  np.testing.assert_array_equal(applied(name, scene(), 0), scene())


def test_auto_contrast_stretches_each_channel():
  image = scene() // 2 + 30
  low, high = image.min((0, 1)), image.max((0, 1))
  np.testing.assert_allclose(
    applied("auto_contrast", image, 1).astype(float),
    (image - low.astype(float)) * 255 / (high - low),
    atol=1,
  )


def test_equalize_flattens_histograms():
  image = (scene(64, 64) // 4 + 100).astype(np.uint8)
  got = applied("equalize", image, 1)
  for channel in range(3):
    counts = np.histogram(got[..., channel], 8, (0, 256))[0]
    assert counts.min() > 64 * 64 / 8 * 0.7


def test_solarize_inverts_above_a_falling_threshold():
  image = scene()
  for strength, threshold in ((0.25, 192), (0.9, 26), (1, 0)):
    np.testing.assert_array_equal(
      applied("solarize", image, strength), np.where(image < threshold, image, 255 - image)
    )


def test_posterize_keeps_eight_down_to_four_bits():
  image = scene()
  for strength, bits in ((0.25, 7), (0.5, 6), (1, 4)):
    np.testing.assert_array_equal(
      applied("posterize", image, strength), image >> (8 - bits) << (8 - bits)
    )


@pytest.mark.parametrize(
  "name, other",
  [
    ("colour", lambda image: grey(image)[..., None]),
    ("contrast", lambda image: int(grey(image).mean() + 0.5)),
    ("brightness", lambda image: 0),
  ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_enhancements_blend_in_both_directions(name, other, sign):
  image = scene()
  np.testing.assert_allclose(
    applied(name, image, 0.5, sign).astype(float),
    blend(other(image), image, 1 + sign * 0.45),
    atol=1.01,
  )


def test_sharpness_blends_with_the_smoothed_image():
  image = scene()
  padded = image.astype(float)
  smooth = padded.copy()
  weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  smooth[1:-1, 1:-1] = sum(
    weights[i, j] * padded[i : i + 18, j : j + 28] for i in range(3) for j in range(3)
  )
  np.testing.assert_allclose(
    applied("sharpness", image, 1, -1).astype(float), blend(smooth, image, 0.1), atol=1.6
  )


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_affine_operations_match_a_pixel_lookup(name, sign):
  image = scene()
  strength = 0.7
  expected = np.empty_like(image)
  for y in range(20):
    for x in range(30):
      u, v = x + 0.5, y + 0.5
      u, v = {
        "shear_x": (u + sign * 0.3 * strength * v, v),
        "shear_y": (u, v + sign * 0.3 * strength * u),
        "translate_x": (u + sign * 150 / 331 * strength * 30, v),
        "translate_y": (u, v + sign * 150 / 331 * strength * 20),
      }[name]
      inside = 0 <= u < 30 and 0 <= v < 20
      expected[y, x] = image[int(v), int(u)] if inside else (1, 2, 3)
  assert (applied(name, image, strength, sign) != expected).any(-1).mean() < 0.01


@pytest.mark.parametrize("sign", [-1, 1])
def test_rotate_turns_by_up_to_thirty_degrees(sign):
  image = scene()
  angle = np.deg2rad(30 * sign)
  expected = np.empty_like(image)
  for y in range(20):
    for x in range(30):
      u, v = x + 0.5 - 15, y + 0.5 - 10
      u, v = np.cos(angle) * u - np.sin(angle) * v + 15, np.sin(angle) * u + np.cos(angle) * v + 10
      inside = 0 <= u < 30 and 0 <= v < 20
      expected[y, x] = image[int(v), int(u)] if inside else (1, 2, 3)
  assert (applied("rotate", image, 1, sign) != expected).any(-1).mean() < 0.01


def test_randaugment_draws_all_operations_and_both_signs():
  image = scene() // 2 + 30  # With the full range, AutoContrast would be the identity.
  possible = {
    applied(name, image, 0.9, sign).tobytes(): name for name in OPERATIONS for sign in (-1, 1)
  }
  augment = RandAugment(1, 9, fill=(1, 2, 3))
  rng = np.random.default_rng(0)
  drawn = [augment(image, rng).tobytes() for _ in range(1400)]
  assert set(drawn) == set(possible)
  counts = [sum(possible[x] == name for x in drawn) for name in OPERATIONS]
  assert min(counts) > 60 and max(counts) < 145
  assert np.array_equal(RandAugment(0)(image, rng), image)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: HorizontalFlip(2), "probability is 2; HorizontalFlip expects a number from 0 to 1"),
    (lambda: ColorJitter(hue=0.6), "hue is 0.6; ColorJitter expects a number from 0 to 0.5"),
    (lambda: ColorJitter(brightness=-1), "brightness is -1; ColorJitter"),
    (lambda: RandAugment(-1), "operations is -1; RandAugment"),
    (
      lambda: RandAugment(magnitude=30),
      "magnitude is 30; RandAugment expects a number from 0 to 10",
    ),
    (lambda: RandAugment(resampling="cubic"), "resampling is 'cubic'; RandAugment"),
  ],
)
def test_invalid_arguments_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()
