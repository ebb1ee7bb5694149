"""Tests of cleaning: which images are re-encoded, and which records are dropped and why."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from clip_jax.data.decode import UnreadableImage, decode
from clip_jax.data.ingest.clean import Cleaning, clean
from clip_jax.data.outcomes import Dropped
from mutations import damaged_bytes


def scene(height=48, width=64):
  """Returns a smooth test image without symmetries, uint8 [H, W, 3]."""
  y, x = np.mgrid[:height, :width]
  return np.stack([200 * x // width, 250 * y // height, 80 + 0 * x], -1).astype(np.uint8)


def encoded(image, format, **options):
  out = io.BytesIO()
  image.save(out, format, **options)
  return out.getvalue()


def image_of(data, **settings):
  record, changes = clean({"image": data, "text": "x"}, Cleaning(**settings))
  return record["image"], changes


def bomb(width, height):
  """Returns a PNG of 70 bytes that claims the given size."""

  def chunk(kind, content):
    return (
      struct.pack(">I", len(content))
      + kind
      + content
      + struct.pack(">I", zlib.crc32(kind + content))
    )

  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", zlib.compress(b""))
    + chunk(b"IEND", b"")
  )


@pytest.mark.parametrize(
  "format, mode",
  [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")],
)
def test_ordinary_images_keep_their_bytes(format, mode):
  data = encoded(Image.fromarray(scene()).convert(mode), format)
  assert image_of(data) == (data, []) == image_of(data, max_side=64)


def unusual():
  picture = Image.fromarray(scene())
  exif = Image.Exif()
  exif[0x0112] = 6
  wide = Image.fromarray(scene()[..., 0].astype(np.uint16) * 257)
  frames = dict(save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")])
  return {
    "animated": encoded(picture, "WEBP", lossless=True, **frames),
    "animated PNG": encoded(picture, "PNG", **frames),
    "from GIF": encoded(picture, "GIF", **frames),
    "from BMP": encoded(picture, "BMP"),
    "from TIFF": encoded(picture, "TIFF"),
    "CMYK": encoded(picture.convert("CMYK"), "JPEG", quality=95),
    "16 bits": encoded(wide, "PNG"),
    "turned": encoded(picture, "JPEG", exif=exif, quality=95),
    "turned PNG": encoded(picture, "PNG", exif=exif),
  }


@pytest.mark.parametrize("what", unusual())
def test_unusual_images_become_plain_jpegs_with_the_same_pixels(what):
  data = unusual()[what]
  image, changes = image_of(data, quality=95)
  assert what.split()[0] in " ".join(changes) and changes[0].split()[0] in what
  with Image.open(io.BytesIO(image)) as header:
    assert header.format == "JPEG" and header.mode == "RGB" and not header.getexif()
  expected = decode(data).astype(int)
  assert decode(image).shape == expected.shape
  assert abs(decode(image) - expected).mean() < 3
  assert image_of(image) == (image, [])


def test_16_bit_colour_pngs_are_detected():
  rows = b"".join(b"\0" + (scene()[y].astype(">u2") * 257).tobytes() for y in range(48))
  plain = bomb(64, 48)
  head = plain[:24] + b"\x10" + plain[25:29]
  head += struct.pack(">I", zlib.crc32(head[12:29]))
  body = zlib.compress(rows)
  data = (
    head
    + struct.pack(">I", len(body))
    + b"IDAT"
    + body
    + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    + plain[-12:]
  )
  np.testing.assert_array_equal(decode(data), scene())
  assert image_of(data)[1] == ["16 bits"]


@pytest.mark.parametrize("size", [(48, 64), (400, 300), (3000, 2000)])
def test_large_images_are_downscaled_accurately(size):
  data = encoded(Image.fromarray(scene(*size)), "JPEG", quality=95)
  image, changes = image_of(data, max_side=40, quality=95)
  height, width = (round(40 * side / max(size)) for side in size)
  assert changes == ["resized"]
  expected = Image.fromarray(scene(*size)).resize((width, height), Image.Resampling.BICUBIC)
  assert decode(image).shape == (height, width, 3)
  assert abs(decode(image) - np.asarray(expected).astype(int)).mean() < 2.5


def test_only_exif_is_removed_from_jpegs():
  exif = Image.Exif()
  exif[0x010F] = "a camera"
  data = encoded(Image.fromarray(scene()), "JPEG", exif=exif, icc_profile=b"a profile", comment="c")
  image, changes = image_of(data)
  assert changes == ["EXIF removed"] and b"camera" not in image and b"a profile" in image
  np.testing.assert_array_equal(decode(image), decode(data))
  assert len(data) - len(image) > 20


def test_pixel_arrays_are_stored_losslessly():
  image, changes = image_of(scene())
  assert changes == ["encoded"]
  np.testing.assert_array_equal(decode(image), scene())
  image, changes = image_of(scene(), max_side=32)
  assert changes == ["encoded", "resized"] and decode(image).shape == (24, 32, 3)


@pytest.mark.parametrize(
  "data, reason",
  [
    (bomb(60_000, 60_000), "too many pixels"),
    (bomb(10_000, 10_000), "too many pixels"),
    (bomb(64, 48), "unreadable image"),
    (b"", "unreadable image"),
    (b"hello", "unreadable image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable image"),
    (encoded(Image.fromarray(scene()), "JPEG")[:-200], "unreadable image"),
    (encoded(Image.fromarray(scene()), "PNG")[:-50], "unreadable image"),
    (np.zeros((4, 4), np.uint8), "unreadable image"),
    (None, "no image"),
  ],
  ids=lambda x: x if isinstance(x, str) else "image",
)
def test_images_that_cannot_be_used_are_dropped(data, reason):
  with pytest.raises(Dropped) as caught:
    image_of(data)
  assert caught.value.reason == reason


def text_of(text, **settings):
  picture = encoded(Image.fromarray(scene(8, 8)), "PNG")
  record, changes = clean({"image": picture, "text": text}, Cleaning(**settings))
  return record["text"], changes


def test_texts_are_decoded_and_stripped():
  assert text_of("  a café\n") == ("a café", [])
  assert text_of("a café".encode()) == ("a café", [])
  left_out = "one of several texts left out: "
  assert text_of(["a", b"b ", "", 7]) == (
    ["a", "b"],
    [f"{left_out}empty text", f"{left_out}text is a number"],
  )
  assert text_of("a\0b") == ("ab", [])
  assert text_of("\ufeffa dog") == ("a dog", ["BOM removed"]) == text_of(b"\xef\xbb\xbfa dog")


def test_texts_by_language_are_chosen_by_key():
  both = {"en": ["a dog", "dog"], "de": "ein Hund"}
  assert text_of(both, language="de") == ("ein Hund", [])
  assert text_of(both, language="en") == (["a dog", "dog"], [])
  with pytest.raises(Dropped, match="no text in this language"):
    text_of(both, language="fr")


def test_html_and_wrong_decoding_are_repaired_on_request():
  text = "caf\u00c3\u00a9 &amp; bar"
  assert text_of(text) == (text, [])
  assert text_of(text, unescape_html=True) == ("caf\u00c3\u00a9 & bar", ["HTML unescaped"])
  assert text_of(text, fix_encoding=True, unescape_html=True) == (
    "café & bar",
    ["text repaired", "HTML unescaped"],
  )
  assert text_of("naïve “quotes”", fix_encoding=True) == ("naïve “quotes”", [])


def test_long_texts_are_truncated_at_a_word_boundary():
  text, changes = text_of("word " * 20_000)
  assert changes == ["text cut"] and len(text) == 1999 and text.endswith("word")
  assert text_of("x" * 100_000)[0] == "x" * 2000
  assert text_of("one two three", max_text=7) == ("one two", ["text cut"])
  assert text_of("one two three", max_text=8) == ("one two", ["text cut"])
  assert text_of("é" * 2000) == ("é" * 2000, [])


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "empty text"),
    (" \n", "empty text"),
    ([], "empty text"),
    (["", " "], "empty text"),
    (b"caf\xe9", "invalid UTF-8"),
    ("half \ud83d", "lone surrogate"),
    (None, "no text"),
    ([None], "no text"),
    (float("nan"), "text is NaN"),
    (np.float32("nan"), "text is NaN"),
    (1.5, "text is a number"),
    (7, "text is a number"),
    (True, "text is a boolean"),
    ({"en": "a dog"}, "text is a dict"),
    ([["a"]], "text is a list"),
  ],
)
def test_texts_that_cannot_be_used_are_dropped(text, reason):
  with pytest.raises(Dropped) as caught:
    text_of(text)
  assert caught.value.reason == reason


def test_a_labeled_record_needs_no_text_and_keeps_its_other_fields():
  data = encoded(Image.fromarray(scene()), "PNG")
  raw = {"image": data, "label": 0, "url": "u"}
  assert clean(raw) == (raw, [])


@pytest.mark.parametrize("progressive", [False, True])
def test_the_quick_look_at_a_jpeg_finds_all_damage_that_decoding_finds(progressive):
  noise = np.random.default_rng(0).integers(-20, 20, (48, 64, 3))
  picture = Image.fromarray((scene() + noise).clip(0, 255).astype(np.uint8))
  data = encoded(picture, "JPEG", progressive=progressive)
  found = {True: 0, False: 0}
  for damaged in damaged_bytes(data, 200):
    try:
      decode(damaged)
      readable = True
    except UnreadableImage:
      readable = False
    found[readable] += 1
    try:
      image_of(damaged)
      assert readable
    except Dropped:
      assert not readable
  assert min(found.values()) > 5
