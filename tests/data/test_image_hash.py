"""The perceptual hash: copies are near, other images far."""

import io

import numpy as np
from PIL import Image, ImageOps
import pytest

from clip_jax.data.decode import UnreadableImage
from clip_jax.data.image_hash import BYTES, MARGIN, image_hash
from clip_jax.data.sources.openclipart import OpenClipart


def bits(a, b):
  return int(np.bitwise_count(image_hash(a) ^ image_hash(b)).sum())


def encoded(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def photo(seed=0, size=(400, 300)):
  """A smooth random image with large and small structures."""
  rng = np.random.default_rng(seed)
  image = sum(
    np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC), np.float32) / k
    for k in (1, 2, 4)
    for part in [rng.integers(0, 256, (3 * k, 4 * k, 3), dtype=np.uint8)]
  )
  return Image.fromarray((image / 1.75).clip(0, 255).astype(np.uint8))


def test_copies_of_a_photo_differ_in_few_bits_and_other_photos_in_many():
  image = photo()
  copies = [
    encoded(image, "JPEG", quality=60),
    encoded(image.resize((200, 150)), "PNG"),
    encoded(image.resize((1600, 1200)), "JPEG", quality=85),  # Decoded at a reduced size.
    encoded(image, "WEBP", quality=50),
  ]
  assert max(bits(image, copy) for copy in copies) <= 4
  assert min(bits(image, photo(seed)) for seed in range(1, 8)) > 40
  assert bits(image, ImageOps.mirror(image)) > 40


def test_bits_are_comparisons_of_neighbouring_cells():
  """A picture with 9 x 9 cells of brightness: one bit for each step above the margin."""
  steps = np.arange(9) * (MARGIN + 1)
  ramp = np.repeat(np.repeat(np.tile(steps, (9, 1)), 10, 0), 10, 1)[..., None].repeat(3, 2)
  ramp = ramp.astype(np.uint8)
  count = lambda image: int(np.bitwise_count(image_hash(image)).sum())
  assert count(ramp) == count(ramp.transpose(1, 0, 2)) == 64
  assert bits(ramp, np.ascontiguousarray(ramp.transpose(1, 0, 2))) == 128
  assert count(np.ascontiguousarray(ramp[:, ::-1])) == 0  # Falling, not rising.
  assert count((ramp * 0.5).astype(np.uint8)) == 0  # Below the margin.


def test_colours_of_the_same_brightness_differ():
  """Two flags with stripes of the same brightness."""
  flag = np.zeros((60, 90, 3), np.uint8)
  flag[:, :30], flag[:, 30:60], flag[:, 60:] = (0, 85, 164), (255, 255, 255), (239, 65, 53)
  other = np.where(flag == 255, 255, flag[..., ::-1])
  grey = lambda image: np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, 2)
  assert bits(flag, other) > bits(grey(flag), grey(other))
  assert bits(flag, other) >= 8


def test_uniform_images_have_no_bits_set_even_with_noise():
  noise = np.random.default_rng(0).integers(250, 256, (200, 200, 3)).astype(np.uint8)
  assert not image_hash(noise).any() and image_hash(noise).shape == (BYTES,)


def test_damaged_images_are_an_error():
  for content in (b"", b"nonsense", OpenClipart("val")[0]["image"][:60]):
    with pytest.raises(UnreadableImage):
      image_hash(content)
