"""Drawings have the pixels, turns, colours and errors that their SVG asks for."""

import numpy as np
import pytest

from clip_jax.data.icons.icon_drawing import (
  INKS,
  BrokenDrawing,
  decode_drawing,
  draw,
  paint,
  random_colours,
  svg,
)
from tests.tiny_icons import HALF, QUARTER, RED

BOX = (0.0, 0.0, 24.0, 24.0)


def drawn(body, box=BOX, size=24, **options):
  return decode_drawing(draw(svg(body, box, **options), size, "a:b"))


def test_a_drawing_without_colours_is_black_on_white():
  expected = np.full((24, 24), 255)
  expected[:, :12] = 0
  np.testing.assert_array_equal(drawn(HALF), expected)


def test_a_box_is_centred_in_a_square():
  pixels = drawn('<path d="M5 5h12v24H5z"/>', (5.0, 5.0, 12.0, 24.0))
  expected = np.full((24, 24), 255)
  expected[:, 6:18] = 0
  np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("rotate", range(4))
@pytest.mark.parametrize("h_flip", [False, True])
@pytest.mark.parametrize("v_flip", [False, True])
def test_flips_come_before_clockwise_turns(rotate, h_flip, v_flip):
  expected = drawn(QUARTER)
  expected = expected[:, ::-1] if h_flip else expected
  expected = expected[::-1] if v_flip else expected
  turned = drawn(QUARTER, rotate=rotate, h_flip=h_flip, v_flip=v_flip)
  np.testing.assert_array_equal(turned, np.rot90(expected, -rotate))


def test_colours_are_kept_and_painted_on_the_paper():
  pixels = drawn(RED + '<path d="M0 0h12v24H0z" fill="#00f" opacity=".5"/>')
  assert pixels.shape == (24, 24, 4)
  painted = paint(drawn('<path fill="#f00" d="M0 0h12v24H0z"/>'), paper=(0, 255, 0))
  assert painted[0, 0].tolist() == [255, 0, 0]
  assert painted[0, 23].tolist() == [0, 255, 0]


def test_paint_mixes_ink_and_paper():
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  ink, paper = (10, 200, 30), (250, 20, 130)
  share = grey[..., None] / 255
  expected = share * np.array(paper) + (1 - share) * np.array(ink)
  np.testing.assert_allclose(paint(grey, ink, paper), expected, atol=0.51)


@pytest.mark.parametrize(
  "body, reason",
  [("<path d=", "broken drawing"), ("<g/>", "blank drawing"), ("<a>&b;</a>", "broken drawing")],
)
def test_what_cannot_be_drawn_is_named(body, reason):
  with pytest.raises(BrokenDrawing, match="a:b") as caught:
    drawn(body)
  assert (caught.value.key, caught.value.reason) == ("a:b", reason)


def test_random_colours_differ_in_brightness_and_have_names():
  rng = np.random.default_rng(0)
  names = set()
  for _ in range(200):
    name, ink, paper = random_colours(rng)
    names.add(name)
    assert np.abs(ink - np.array(INKS[name])).max() <= 15
    assert abs(float((paper - ink) @ [0.3, 0.59, 0.11])) > 80
  assert names == set(INKS)
