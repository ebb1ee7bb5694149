"""Decoding gives the same pixels as Pillow, and an error for damaged images."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import io
from pathlib import Path
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin
import pytest
import simplejpeg

from clip_jax.data import decode as decode_lib
from clip_jax.data.decode import Picture, UnreadableImage, decode, open_image
from clip_jax.data.ingest.clean import Cleaning, clean
from clip_jax.data.memory_budget import MemoryBudget
from clip_jax.data.outcomes import Dropped
from mutations import damaged_bytes


def scene(height=48, width=64):
  """uint8 [H, W, 3], smooth, without symmetries."""
  y, x = np.mgrid[:height, :width]
  return np.stack([4 * x % 256, 5 * y, 2 * (x + y)], -1).astype(np.uint8)


def encoded(image, format, **options):
  out = io.BytesIO()
  image.save(out, format, **options)
  return out.getvalue()


@pytest.mark.parametrize(
  "format, options",
  [
    ("JPEG", dict(quality=90)),
    ("JPEG", dict(quality=90, progressive=True)),
    ("PNG", {}),
    ("WEBP", {}),
    ("BMP", {}),
    ("GIF", {}),
    ("TIFF", {}),
  ],
)
def test_pixels_match_pillow(format, options):
  data = encoded(Image.fromarray(scene()), format, **options)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode(data), expected)


def test_arrays_are_returned_unchanged():
  image = scene()
  assert decode(image) is image


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "P"])
def test_other_modes_become_rgb(mode):
  image = Image.fromarray(scene()).convert(mode)
  data = encoded(image, "PNG" if mode in ("1", "P") else "JPEG")
  got = decode(data)
  np.testing.assert_array_equal(got, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
  assert got.shape == (48, 64, 3)


def test_sixteen_bits_are_scaled_to_eight():
  wide = np.array([[0, 128, 129, 257 * 7, 65535, 65535 - 128]], np.uint16)
  for format in ("PNG", "TIFF"):
    got = decode(encoded(Image.fromarray(wide), format))
    assert got[0, :, 0].tolist() == [0, 0, 1, 7, 255, 255], format
    assert (got == got[..., :1]).all()


def test_transparency_is_composited_onto_white():
  rgba = np.dstack([scene(), np.full((48, 64), 255, np.uint8)])
  rgba[:10, ..., 3], rgba[10:20, ..., 3] = 0, 128
  for format in ("PNG", "WEBP"):
    got = decode(encoded(Image.fromarray(rgba), format, lossless=True)).astype(int)
    assert (got[:10] == 255).all()
    assert abs(got[10:20] - (scene()[10:20] * (128 / 255) + 255 * (127 / 255))).max() <= 1
    assert (got[20:] == scene()[20:]).all()
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
  palette.putpalette([9, 9, 9, 200, 0, 0])
  assert decode(encoded(palette, "PNG", transparency=0)).tolist() == [[[255] * 3, [200, 0, 0]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, format):
  turn = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(Image.fromarray(scene()), format, exif=exif)
  plain = decode(encoded(Image.fromarray(scene()), format))
  picture = Picture(data)
  np.testing.assert_array_equal(picture.pixels(), turn(plain))
  assert (picture.height, picture.width) == turn(plain).shape[:2]


def test_animations_give_their_first_frame():
  first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
  for format in ("GIF", "WEBP", "PNG"):
    data = encoded(first, format, save_all=True, append_images=[second], lossless=True)
    assert decode(data)[0, 0].tolist() == [255, 0, 0], format


def test_jpegs_decode_at_the_requested_scale():
  data = simplejpeg.encode_jpeg(scene(203, 301), 90)
  picture = Picture(data)
  for shrink in (1, 2, 4, 8):
    assert picture.pixels(shrink).shape == (-(-203 // shrink), -(-301 // shrink), 3)
  assert picture.pixels(4) is picture.pixels(4)


def test_only_plain_jpegs_decode_at_a_reduced_size():
  with pytest.raises(ValueError, match="full size only, not at 1/2"):
    Picture(encoded(Image.fromarray(scene()), "PNG")).pixels(2)
  for image in (scene(), encoded(Image.fromarray(scene()), "PNG")):
    picture = Picture(image)
    picture.pixels()
    with pytest.raises(ValueError, match="full size only, not at 1/4"):
      picture.pixels(4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_truncated_images_raise(format, mode):
  data = encoded(Image.fromarray(scene(200, 200)).convert(mode), format)
  for share in (0.1, 0.5, 0.9):
    with pytest.raises(UnreadableImage):
      decode(data[: int(len(data) * share)])


def test_flipped_bits_in_a_jpeg_raise():
  data = bytearray(simplejpeg.encode_jpeg(scene(200, 200), 90))
  data[len(data) // 2 : len(data) // 2 + 4] = b"\xff\x00\xff\xd9"
  with pytest.raises(UnreadableImage):
    decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8", b"RIFF\0\0\0\0WEBP", b"\x89PNG"])
def test_bytes_that_are_not_an_image_raise(data):
  with pytest.raises(UnreadableImage):
    decode(data)


def test_float_pixels_raise():
  data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
  with pytest.raises(UnreadableImage, match="Float pixels"):
    decode(data)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_arrays_of_other_shapes_or_dtypes_raise(array):
  with pytest.raises(UnreadableImage, match="uint8 .H, W, 3., not"):
    decode(array)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_decompression_bombs_raise_before_decoding(format, monkeypatch):
  monkeypatch.setattr(decode_lib, "MAX_PIXELS", 48 * 64 - 1)
  for kind in (ImageFile.ImageFile, PngImagePlugin.PngImageFile, TiffImagePlugin.TiffImageFile):
    monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("The image is decoded."))
  with pytest.raises(UnreadableImage, match="64 x 48 pixels, more than 3,071"):
    Picture(encoded(Image.fromarray(scene()), format))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 moveto 8 8 lineto stroke
showpage
"""


def other_formats():
  image = Image.fromarray(scene(16, 16))
  yield "EPS", EPS
  for format in ("TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000"):
    with contextlib.suppress(KeyError, OSError):  # Not every build of Pillow writes all of them.
      yield format, encoded(image, format)


def test_formats_outside_the_list_are_not_even_opened(monkeypatch):
  run = []
  monkeypatch.setattr(subprocess, "check_call", lambda *a, **_: run.append(a))
  monkeypatch.setattr(subprocess, "Popen", lambda *a, **_: run.append(a))
  names = []
  for name, data in other_formats():
    names.append(name)
    for read in (decode, open_image, lambda data: clean({"image": data, "text": "x"})):
      with pytest.raises((UnreadableImage, OSError, Dropped)):
        read(data)
  assert "EPS" in names and len(names) >= 5 and not run


@pytest.mark.parametrize("format", ["AVIF", "PPM", "DIB", "QOI", "BMP", "GIF", "TIFF"])
def test_rarer_formats_are_read(format):
  image = Image.fromarray(scene(16, 24))
  data = encoded(image, format)
  assert np.abs(decode(data).astype(int) - np.asarray(image)).mean() < (
    5 if format == "AVIF" else 9
  )
  assert clean({"image": data, "text": "x"})[1] == [f"from {format}"]


def test_the_list_of_formats_is_the_only_one():
  """Every other call of Pillow's `open` reads a single format, or it could read more than these."""
  package = Path(decode_lib.__file__).parents[1]
  opens = [
    (path, line)
    for path in package.rglob("*.py")
    for line in path.read_text().splitlines()
    if "Image.open(" in line
  ]
  assert {p for p, line in opens if 'formats=("PNG",)' not in line} == {package / "data/decode.py"}


def test_a_jpeg_with_several_images_is_a_jpeg():
  first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
  data = encoded(first, "MPO", save_all=True, append_images=[second])
  assert open_image(data).format == "MPO"
  assert decode(data)[0, 0].tolist() == [254, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_threads_decode_large_images_only_as_far_as_memory_allows(format, monkeypatch):
  budget = MemoryBudget(3 * 1_000_000 * 16)
  monkeypatch.setattr(decode_lib, "MEMORY", budget)
  monkeypatch.setattr(decode_lib, "_JPEG_COST", 16)
  data = encoded(Image.new("RGB", (1000, 1000), "red"), format)
  now, most, lock, read = 0, 0, threading.Lock(), Picture._decoded

  def counted(picture, shrink):
    nonlocal now, most
    with lock:
      now += 1
      most = max(most, now)
    time.sleep(0.01)
    pixels = read(picture, shrink)
    with lock:
      now -= 1
    return pixels

  monkeypatch.setattr(Picture, "_decoded", counted)
  with ThreadPoolExecutor(16) as pool:
    assert {x.shape for x in pool.map(decode, [data] * 48)} == {(1000, 1000, 3)}
  assert most == 3 and budget.used == 0


def test_a_picture_holds_memory_as_long_as_its_pixels(monkeypatch):
  budget = MemoryBudget(2**30)
  monkeypatch.setattr(decode_lib, "MEMORY", budget)
  picture = Picture(simplejpeg.encode_jpeg(scene(200, 300), 90))
  assert budget.used == 0
  picture.pixels(1)
  assert budget.used == 7 * 200 * 300
  picture.pixels(2)
  assert budget.used == 7 * (200 * 300 + 100 * 150)
  del picture
  assert budget.used == 0


def test_a_damaged_image_gives_its_memory_back_while_its_error_is_kept(monkeypatch):
  budget = MemoryBudget(2**30)
  monkeypatch.setattr(decode_lib, "MEMORY", budget)
  data = encoded(Image.fromarray(scene(200, 200)), "PNG")
  with pytest.raises(UnreadableImage) as raised:
    decode(data[: len(data) // 2])
  assert budget.used == 0 and raised.value


@pytest.mark.slow
def test_eight_threads_decode_decompression_bombs_in_less_than_2_gb(tmp_path):
  Image.new("RGBA", (8000, 8000), (9, 9, 9, 99)).save(tmp_path / "bomb.png")
  code = f"""
import concurrent.futures, pathlib, resource
from clip_jax.data.crops import Resize
data = pathlib.Path({str(tmp_path / "bomb.png")!r}).read_bytes()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
  list(pool.map(Resize(32), [data] * 12))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
  ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert int(ran.stdout) < 2e9


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_random_damage_gives_pixels_or_one_kind_of_error(format):
  exif = Image.Exif()
  exif[0x0112] = 6
  options = {} if format in ("GIF", "BMP") else {"exif": exif}
  data = encoded(Image.fromarray(scene()), format, **options)
  for damaged in damaged_bytes(data, 200):
    with contextlib.suppress(UnreadableImage):
      assert decode(damaged).dtype == np.uint8
    with contextlib.suppress(Dropped):
      clean({"image": damaged, "text": "x"}, Cleaning(max_side=16))


def test_the_properties_of_a_jpeg_are_found_in_its_header():
  image, exif = Image.new("RGB", (60, 40), (9, 99, 200)), Image.Exif()
  exif[0x0112] = 6
  for progressive in (False, True):
    for options in ({}, {"exif": exif}, {"icc_profile": bytes(70_000)}, {"comment": b"\xff\xc2"}):
      out = io.BytesIO()
      image.save(out, "JPEG", progressive=progressive, **options)
      encoded = out.getvalue()
      expected = ("exif" in options, progressive)
      assert decode_lib._jpeg_properties(encoded) == expected
      padded = encoded[:2] + b"\xff\xff" + encoded[2:]  # Fill bytes before a marker.
      assert decode_lib._jpeg_properties(padded) == expected
  for cut in range(2, 200):
    decode_lib._jpeg_properties(encoded[:cut])
