"""Tests of contact sheets: images, and placement of the texts below them."""

import io

import numpy as np
from PIL import Image

from clip_jax.inference.contact_sheet import CELL, GAP, MARGIN, PAPER, contact_sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)
SENTENCE = "a text that is longer than a picture is wide, and than three lines of it would be " * 3


def encoded(colour):
  file = io.BytesIO()
  Image.new("RGB", (40, 40), colour).save(file, "PNG")
  return file.getvalue()


def pixels(sheet, colour):
  return (np.asarray(sheet) == colour).all(-1)


def test_images_may_be_bytes_arrays_or_pillow_images():
  of = lambda image: contact_sheet([image], [""], title="one")
  first = of(encoded(RED))
  assert pixels(first, RED).sum() > 10_000
  for image in (np.full((40, 40, 3), RED, np.uint8), Image.new("RGB", (40, 40), RED)):
    np.testing.assert_array_equal(of(image), first)


def test_a_long_text_is_wrapped_between_its_image_and_the_next_row():
  images = [encoded(c) for c in (RED, RED, BLUE, BLUE)]
  sheet = contact_sheet(images, [SENTENCE, "", "", SENTENCE], title=SENTENCE, columns=2)
  red, blue = (np.nonzero(pixels(sheet, c).any(1))[0] for c in (RED, BLUE))
  bare = contact_sheet(images, [""] * 4, title=SENTENCE, columns=2)
  assert np.nonzero(pixels(bare, BLUE).any(1))[0][0] < blue[0]  # Long texts make room.
  paper = np.asarray(Image.new("RGB", (1, 1), PAPER))[0, 0]
  ink = (np.asarray(sheet) != paper).any(-1)
  between = ink[red[-1] + GAP : blue[0] - GAP]
  assert between[:, MARGIN - 4 : MARGIN + CELL + 4].any()
  assert not between[:, MARGIN + CELL + 4 :].any() and not between[:, : MARGIN - 4].any()
  assert not ink[-MARGIN // 4 :].any() and not ink[:, -MARGIN // 2 :].any()
