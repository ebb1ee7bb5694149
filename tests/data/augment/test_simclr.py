"""SimCLR's augmentation on the device agrees with Pillow, colorsys and plain loops."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
import pytest

from clip_jax.data.augment.simclr import (
  SimclrColors,
  gaussian_blur,
  jitter_colors,
  luma,
  rotate_hue_yiq,
)
from clip_jax.errors import UserError

OFF = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0, blur=0.0, flip=0.0)


def scenes(B, height=24, width=32, seed=0):
  """Smooth images, like photographs: uint8 [B, H, W, 3]."""
  small = np.random.default_rng(seed).integers(256, size=(B, 7, 8, 3), dtype=np.uint8)
  pictures = (Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC) for x in small)
  return np.stack([np.asarray(picture) for picture in pictures])


def keys(B, seed=0):
  return jax.random.split(jax.random.key(seed), B)


def floats(image):
  return jnp.asarray(image, jnp.float32) / 255


augmented = jax.jit(lambda augment, image, key: augment(image, key), static_argnums=0)


@pytest.fixture(scope="module")
def everything():
  """64 images and their augmentations with the default settings."""
  image = scenes(64)
  return image, np.asarray(augmented(SimclrColors(), image, keys(64)))


def test_shape_and_range_are_preserved(everything):
  image, x = everything
  assert x.shape == image.shape and x.dtype == np.float32
  assert x.min() >= -1e-6 and x.max() <= 1 + 1e-6
  changed = np.abs(x - image / 255.0).max((1, 2, 3)) > 0.01
  assert 0.8 < changed.mean() <= 1


def test_an_image_does_not_depend_on_the_others(everything):
  image, x = everything
  part = np.asarray(augmented(SimclrColors(), image[40:48], keys(64)[40:48]))
  np.testing.assert_allclose(part, x[40:48], atol=1e-6)


def test_the_jaxpr_has_no_branch_and_no_loop():
  text = str(jax.make_jaxpr(SimclrColors())(scenes(2), keys(2)))
  assert "cond[" not in text and "while[" not in text


@pytest.mark.parametrize(
  "place, enhance",
  [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)],
)
def test_enhancements_match_pillow(place, enhance):
  image, change = scenes(4), np.float32([-0.4, -0.1, 0.2, 0.4])
  changes = np.zeros((4, 4), np.float32)
  changes[:, place] = change
  x = jax.jit(jitter_colors)(floats(image), changes, jnp.tile(jnp.arange(4), (4, 1)))
  for i in range(4):
    theirs = enhance(Image.fromarray(image[i])).enhance(1 + float(change[i]))
    np.testing.assert_allclose(255 * x[i], np.asarray(theirs), atol=1.4)  # Pillow rounds down.


def test_hue_shift_matches_colorsys():
  image = scenes(3)
  turns = np.float32([-0.1, 0.04, 0.5])
  x = jax.jit(rotate_hue_yiq)(floats(image), turns[:, None, None])
  for i, turn in enumerate(turns):
    for before, after in zip(image[i].reshape(-1, 3)[::5] / 255, x[i].reshape(-1, 3)[::5]):
      hue, saturation, value = colorsys.rgb_to_hsv(*before)
      expected = colorsys.hsv_to_rgb((hue + float(turn)) % 1, saturation, value)
      np.testing.assert_allclose(after, expected, atol=1e-5)


def test_hue_shift_leaves_greys_unchanged():
  x = jnp.linspace(0, 1, 12).reshape(1, 2, 6, 1) * jnp.ones(3)
  np.testing.assert_allclose(rotate_hue_yiq(x, jnp.float32(0.3)), x, atol=1e-6)


def test_each_image_has_its_own_jitter_order():
  """Compares all 24 orders in one batch with the four operations applied in sequence."""
  orders = np.array(list(itertools.permutations(range(4))))
  image = np.repeat(scenes(1), 24, axis=0)
  changes = np.float32([0.4, -0.3, 0.4, 0.1])
  x = jax.jit(jitter_colors)(floats(image), jnp.tile(changes, (24, 1)), orders)
  grey = lambda one: one @ np.float64([0.299, 0.587, 0.114])
  operations = (
    lambda one: (1 + changes[0]) * one,
    lambda one: (1 + changes[1]) * one - changes[1] * grey(one).mean(),
    lambda one: (1 + changes[2]) * one - changes[2] * grey(one)[..., None],
    lambda one: np.asarray(rotate_hue_yiq(jnp.asarray(one, jnp.float32)[None], changes[3]))[0],
  )
  results = set()
  for order, got in zip(orders, x):
    one = image[0] / 255.0
    for i in order:
      one = operations[i](one).clip(0, 1)
    np.testing.assert_allclose(got, one, atol=2e-5)
    results.add(np.asarray(got).tobytes())
  assert len(results) > 12  # The order matters.


def test_grey_matches_pillow():
  image = scenes(2)
  x = augmented(SimclrColors(**{**OFF, "grayscale": 1.0}), image, keys(2))
  for i in range(2):
    theirs = np.asarray(Image.fromarray(image[i]).convert("L"))[..., None]
    np.testing.assert_allclose(255 * x[i], np.broadcast_to(theirs, x[i].shape), atol=0.51)


def test_blur_matches_a_gaussian_and_approximates_pillow():
  image, sigma = scenes(3, 20, 26), np.float32([0.1, 0.9, 2.0])
  x = np.asarray(jax.jit(lambda x, s: gaussian_blur(x, s, max_sigma=2.0))(floats(image), sigma))
  for i in range(3):
    offsets = np.arange(-6, 7)
    weights = np.exp(-(offsets**2) / (2 * float(sigma[i]) ** 2))
    weights /= weights.sum()
    H, W = image.shape[1:3]
    rows = np.array(
      [
        [
          sum(w * (min(max(a + o, 0), H - 1) == b) for w, o in zip(weights, offsets))
          for b in range(H)
        ]
        for a in range(H)
      ]
    )
    columns = np.array(
      [
        [
          sum(w * (min(max(a + o, 0), W - 1) == b) for w, o in zip(weights, offsets))
          for b in range(W)
        ]
        for a in range(W)
      ]
    )
    expected = np.einsum("ab,bcd,ec->aed", rows, image[i] / 255.0, columns)
    np.testing.assert_allclose(x[i], expected, atol=1e-5)
    theirs = Image.fromarray(image[i]).filter(ImageFilter.GaussianBlur(float(sigma[i])))
    assert np.abs(255 * x[i] - np.asarray(theirs, float)).mean() < 2
    if sigma[i] == 2:
      assert np.abs(255 * x[i] - image[i]).mean() > 10


def test_operations_happen_with_their_probabilities():
  image = scenes(1, 8, 8).repeat(512, axis=0)
  original = image / 255.0
  cases = {
    "jitter": (dict(OFF, brightness=0.4, probability=0.8), 0.8),
    "grayscale": (dict(OFF, grayscale=0.2), 0.2),
    "blur": (dict(OFF, blur=0.5, sigma=(1.0, 2.0)), 0.5),
    "flip": (dict(OFF, flip=0.5), 0.5),
  }
  for name, (arguments, rate) in cases.items():
    x = np.asarray(augmented(SimclrColors(**arguments), image, keys(512)))
    changed = np.abs(x - original).max((1, 2, 3)) > 1e-4
    assert abs(changed.mean() - rate) < 0.07, name
    if name == "flip":
      np.testing.assert_allclose(x[changed], original[changed][:, :, ::-1], atol=1e-6)


def test_strengths_bound_the_changes():
  image = np.full((512, 2, 2, 3), 100, np.uint8)
  x = augmented(SimclrColors(**{**OFF, "brightness": 0.4}, probability=1.0), image, keys(512))
  factors = np.asarray(x)[:, 0, 0, 0] * 255 / 100
  assert 0.6 <= factors.min() < 0.63 and 1.37 < factors.max() <= 1.4
  assert abs(factors.mean() - 1) < 0.04


def test_disabled_augmentation_only_converts_to_float():
  image = scenes(2)
  np.testing.assert_array_equal(augmented(SimclrColors(**OFF), image, keys(2)), floats(image))
  np.testing.assert_allclose(
    luma(floats(image))[..., 0], image @ [0.299, 0.587, 0.114] / 255, atol=1e-6
  )


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(hue=0.6), "hue is 0.6; SimclrColors"),
    (dict(blur=-0.1), "blur is -0.1; SimclrColors"),
    (dict(sigma=(0.0, 2.0)), r"sigma is \(0.0, 2.0\); SimclrColors expects .* above 0"),
  ],
)
def test_invalid_arguments_raise(arguments, message):
  with pytest.raises(UserError, match=message):
    SimclrColors(**arguments)
