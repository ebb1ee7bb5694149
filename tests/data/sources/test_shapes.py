"""Tests of the synthetic scenes: captions agree with the pixels, noise is as requested."""

import pickle
import re

import numpy as np
import pytest

from clip_jax.data.sources.shapes import COLOURS, Shapes
from clip_jax.errors import UserError


def centres(image):
  """Returns (mean x, mean y, number) of the pixels of each pure colour, by colour name."""
  found = {}
  for name, colour in COLOURS.items():
    y, x = np.nonzero((abs(image.astype(int) - colour).max(2)) <= 1)
    if len(x) >= 6:
      found[name] = x.mean(), y.mean(), len(x)
  return found


def test_captions_match_the_pixels():
  """Locates the objects by colour, in scenes where all colours differ."""
  checked = 0
  for record in (Shapes(400, image_size=96)[i] for i in range(400)):
    named = re.findall(r"a (small|large) (\w+) (\w+)", record["text"])
    relations = re.findall(r"left of|right of|above|below", record["text"])
    colours = [colour for _, colour, _ in named]
    if len(set(colours)) < len(colours):
      continue
    at = centres(record["image"])
    assert set(at) == set(colours), record["text"]
    assert Shapes.classes[record["label"]] == " ".join(named[0][1:])
    assert len(relations) == len(named) - 1
    x, y, _ = at[colours[0]]
    for relation, colour in zip(relations, colours[1:]):
      u, v, _ = at[colour]
      assert {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[relation]
      checked += 1
  assert checked > 100


def test_small_is_smaller_than_large():
  area = {"small": [], "large": []}
  for i in range(200):
    record = Shapes(200, objects=1)[i]
    size, colour = re.match(r"a (\w+) (\w+)", record["text"]).groups()
    if "square" in record["text"]:
      area[size].append(centres(record["image"])[colour][2])
  assert max(area["small"]) < min(area["large"])


def test_a_record_depends_on_seed_and_index_only():
  a, b = Shapes(100, seed=3), pickle.loads(pickle.dumps(Shapes(10**9, seed=3)))
  for i in (99, 0, 42):
    assert np.array_equal(a[i]["image"], b[i]["image"]) and a[i]["text"] == b[i]["text"]
  assert [Shapes(100, seed=4)[i]["text"] for i in range(9)] != [a[i]["text"] for i in range(9)]


def test_noise_swaps_a_fraction_of_the_captions_but_no_image():
  clean, some, more = (Shapes(2000, noise=noise) for noise in (0, 0.2, 0.5))
  rows = [(clean[i], some[i], more[i]) for i in range(2000)]
  assert abs(np.mean([b["swapped"] for _, b, _ in rows]) - 0.2) < 0.04
  assert abs(np.mean([c["swapped"] for _, _, c in rows]) - 0.5) < 0.04
  for a, b, c in rows:
    assert not a["swapped"] and b["swapped"] <= c["swapped"]
    assert (a["text"] != b["text"]) == b["swapped"] and (a["text"] != c["text"]) == c["swapped"]
    assert np.array_equal(a["image"], c["image"])


def test_images_have_the_requested_size():
  for size in (16, 33, 224):
    image = Shapes(5, image_size=size)[4]["image"]
    assert image.dtype == np.uint8 and image.shape == (size, size, 3)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(size=0), "size is 0; Shapes expects an integer of at least 1"),
    (dict(size=1, image_size=8), "image_size is 8; Shapes expects an integer of at least 16"),
    (dict(size=1, noise=2), "noise is 2; Shapes"),
    (dict(size=1, objects=4), "objects is 4; Shapes expects an integer from 1 to 3"),
  ],
)
def test_an_invalid_argument_is_rejected(arguments, message):
  with pytest.raises(UserError, match=message):
    Shapes(**arguments)


def test_an_index_out_of_range_raises_index_error():
  with pytest.raises(IndexError, match="record 5 of 5"):
    Shapes(5)[5]
