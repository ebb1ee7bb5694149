"""The same drawing is found at other paddings; drawings that differ in a detail are not."""

import numpy as np

from clip_jax.data.icons.icon_drawing import decode_drawing, draw, svg
from clip_jax.data.icons.near_duplicates import LENGTH, connected, near_pairs, thumbnail
from tests.tiny_icons import RED, SHAPES


def drawn(body, side=24.0, size=48):
  return decode_drawing(draw(svg(body, (0.0, 0.0, side, side)), size, "a:b"))


def test_padding_does_not_matter():
  # Not the star, whose tips are too thin for its box to be the same at another size.
  bodies = [body for name, body in SHAPES.items() if name != "star"]
  shapes = [drawn(body) for body in bodies]
  padded = [drawn(f'<g transform="translate(4 2)">{body}</g>', 30.0) for body in bodies]
  n = len(shapes)
  pairs = near_pairs(np.stack([thumbnail(x) for x in shapes + padded]))
  assert pairs.tolist() == [[i, n + i] for i in range(n)]


def test_a_small_detail_and_a_colour_make_another_drawing():
  circle = '<circle cx="12" cy="12" r="10" fill="none" stroke="#000" stroke-width="2"/>'
  arrows = [circle + f'<path d="{d}"/>' for d in ("M7 12l5-5v10z", "M17 12l-5-5v10z")]
  blue = RED.replace("#f00", "#00f")
  found = near_pairs(np.stack([thumbnail(drawn(x)) for x in (*arrows, circle, RED, blue, RED)]))
  assert found.tolist() == [[3, 5]]


def test_pairs_are_those_of_comparing_all_with_all():
  rng = np.random.default_rng(0)
  base = rng.integers(0, 256, (300, LENGTH))
  noisy = np.clip(base[:100] + rng.integers(-4, 5, (100, LENGTH)), 0, 255)
  thumbnails = np.concatenate([base, noisy]).astype(np.uint8)
  difference = np.abs(thumbnails[:, None].astype(int) - thumbnails[None])
  expected = np.argwhere(np.triu((difference.mean(2) <= 8), 1))
  assert near_pairs(thumbnails).tolist() == expected.tolist()
  assert len(expected) == 100


def test_connected_follows_pairs_and_keys():
  groups = connected(7, np.array([[1, 4], [4, 6]]), ["a", "b", "c", "a", None, "c", None])
  assert groups.tolist() == [0, 1, 2, 0, 1, 2, 1]
