"""Each effect of `Redraw` against what it says it does."""

import numpy as np
import pytest

from clip_jax.data.augment.redraw import Redraw

EFFECTS = ("pixelate", "one_bit", "thicken", "thin", "fill", "outline", "grayscale", "invert")


def only(effect):
  return Redraw(**{name: float(name == effect) for name in EFFECTS})


def ring(side=24):
  """A dark ring on white, 3 pixels wide, uint8 [S, S, 3]."""
  y, x = np.mgrid[:side, :side] - (side - 1) / 2
  radius = np.hypot(y, x)
  return np.repeat(np.where((radius > 5) & (radius < 8), 0, 255)[..., None], 3, 2).astype(np.uint8)


def noise(side=24):
  return np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)


def redrawn(effect, image, seed=0):
  return only(effect)(image, np.random.default_rng(seed))


def windows(image):
  """The 3 x 3 pixels around each inner pixel, [S - 2, S - 2, 3, 9]."""
  parts = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1))
  return parts.reshape(*parts.shape[:3], 9)


def test_thick_and_thin_lines_are_minima_and_maxima_of_the_surroundings():
  image = noise()
  around = windows(image)
  np.testing.assert_array_equal(redrawn("thicken", image)[1:-1, 1:-1], around.min(-1))
  np.testing.assert_array_equal(redrawn("thin", image)[1:-1, 1:-1], around.max(-1))


def test_a_ring_is_filled():
  image = ring()
  filled = redrawn("fill", image)
  assert filled[12, 12].max() == 0 and filled[0, 0].min() == 255
  np.testing.assert_array_equal(filled[image == 0], 0)


def test_an_outline_keeps_the_edges_only():
  image = np.full((12, 12, 3), 255, np.uint8)
  image[2:10, 2:10] = 0
  expected = image.copy()
  expected[3:9, 3:9] = 255
  np.testing.assert_array_equal(redrawn("outline", image), expected)


def test_pixels_become_coarse():
  image, sides = noise(), set()
  for seed in range(12):
    coarse = redrawn("pixelate", image, seed)
    side = 3 if (coarse[:3, :3] == coarse[0, 0]).all() else 2
    sides.add(side)
    blocks = image.reshape(24 // side, side, 24 // side, side, 3).mean((1, 3))
    np.testing.assert_allclose(coarse[::side, ::side], blocks, atol=1)
  assert sides == {2, 3}


def test_colours():
  image = noise()
  np.testing.assert_array_equal(redrawn("invert", image), 255 - image)
  grey = image @ [0.299, 0.587, 0.114]
  np.testing.assert_allclose(redrawn("grayscale", image), grey[..., None].repeat(3, 2), atol=1)
  np.testing.assert_array_equal(redrawn("one_bit", image), np.where(image > 140, 255, 0))


@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_without_probability_is_never_applied(effect):
  image = ring() + (effect != "fill") * noise() // 8
  none = Redraw(**dict.fromkeys(EFFECTS, 0.0))
  assert none(image, np.random.default_rng(0)) is image
  changed = [
    not np.array_equal(Redraw(**{**dict.fromkeys(EFFECTS, 0.0), effect: 0.3})(image, rng), image)
    for rng in map(np.random.default_rng, range(200))
  ]
  assert 0.2 < np.mean(changed) < 0.4
