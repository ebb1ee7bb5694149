"""One raw record to a clean one, and what was changed about it; or why it is dropped."""

import io
from typing import Any
import warnings

import numpy as np
from PIL import Image
import simplejpeg

from clip_jax.data.decode import MAX_PIXELS, Picture, UnreadableImage

# Pillow reads more, some by running other programs; those have no business in a training set.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # MPO is a JPEG with more of them behind it.
_ORIENTATION = 0x0112


class Dropped(Exception):
  """Why a record is left out; its only argument is the reason, by which it is counted."""

  @property
  def reason(self) -> str:
    """Why, in words."""
    return self.args[0]


def clean(raw: dict[str, Any], *, max_side: int | None = None, quality: int = 92,
          max_text: int = 2000) -> tuple[dict[str, Any], list[str]]:
  """A record that every part of training can read.

  The image is decoded once, so that a damaged one is noticed now. Its bytes stay as they are if
  they are JPEG, PNG or WebP that needs no thought. What is animated, CMYK, of 16 bits, turned by
  EXIF, of another format or larger than `max_side` becomes a JPEG of its first picture, in RGB, the
  right way up. EXIF is removed from JPEGs: it may say where and by whom, and decoding is slower.

  Args:
    raw: "image" (encoded bytes or uint8 [H, W, 3]), "text" (str, UTF-8 bytes, or a list), and
      fields that stay as they are. A record with a "label" needs no text.
    max_side: pixels that the longer side is reduced to; None for no limit.
    quality: of JPEGs that are written.
    max_text: characters that a longer text is cut to, at a word's end: what begins an endless
      caption still describes the image, and no tokenizer here reads as far.

  Returns:
    The record, and what was changed about it, a word or two each.

  Raises:
    Dropped: "no image", "no text", "empty text", "invalid UTF-8", "too many pixels" or "unreadable
      image".
  """
  changes = []
  record = {k: v.item() if isinstance(v, np.generic) else v for k, v in raw.items()}
  if raw.get("image") is None:
    raise Dropped("no image")
  if raw.get("text") is not None:
    record["text"] = _texts(raw["text"], max_text, changes)
  elif raw.get("label") is None:
    raise Dropped("no text")
  else:
    record.pop("text", None)
  record["image"] = _image(raw["image"], max_side, quality, changes)
  return record, changes


def _texts(given, most, changes):
  """str, or list of at least one str, none of them empty."""
  texts = [_text(text, most, changes) for text in (given if isinstance(given, list) else [given])]
  texts = [text for text in texts if text]
  if not texts:
    raise Dropped("empty text")
  return texts if isinstance(given, list) else texts[0]


def _text(text, most, changes):
  try:
    text = bytes(text).decode("utf-8") if isinstance(text, (bytes, bytearray)) else str(text)
    text.encode("utf-8")  # A string out of JSON may hold half a character.
  except UnicodeError as error:
    raise Dropped("invalid UTF-8") from error
  text = text.replace("\0", "").strip()
  if len(text) <= most:
    return text
  changes.append("text cut")
  cut = text[:most + 1]
  return (cut[:cut.rindex(" ")] if " " in cut else text[:most]).strip()


def _image(image, max_side, quality, changes):
  """Encoded bytes."""
  if isinstance(image, np.ndarray):
    changes.append("encoded")
    out = io.BytesIO()
    pixels = _try(Picture, image).pixels()
    Image.fromarray(_reduced(pixels, max_side, changes)).save(out, "PNG")
    return out.getvalue()
  ours = _unusual(image)
  picture = _try(Picture, image)
  longest, shrink = max(picture.height, picture.width), 1
  if max_side and picture.can_shrink:
    # With half as many again as are wanted, nothing of the decoder's shrinking is seen.
    shrink = max(k for k in (1, 2, 4, 8) if k == 1 or longest >= 1.5 * k * max_side)
  pixels = _reduced(_try(picture.pixels, shrink), max_side, ours)
  changes.extend(ours)
  if not ours:
    if image.startswith(b"\xff\xd8") and b"Exif\0\0" in image:
      changes.append("EXIF removed")
      return _without_exif(image)
    return bytes(image)
  return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def _unusual(image):
  """What about an image keeps it from being read by everything in the same way."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of the bomb, which is dealt with here.
      header = Image.open(io.BytesIO(image), formats=_FORMATS)
    if header.width * header.height > MAX_PIXELS:
      raise Dropped("too many pixels")
    unusual = [] if header.format in _KEPT else [f"from {header.format}"]
    if header.format != "MPO" and getattr(header, "is_animated", False):
      unusual.append("animated")
    if header.mode == "CMYK":
      unusual.append("CMYK")
    # Of 16-bit PNGs in colour Pillow gives 8 bits, and no word of it.
    if header.mode.startswith("I") or (header.format == "PNG" and image[24] == 16):
      unusual.append("16 bits")
    if header.getexif().get(_ORIENTATION, 1) in range(2, 9):
      unusual.append("turned")
    return unusual
  except Image.DecompressionBombError as error:
    raise Dropped("too many pixels") from error
  except Dropped:
    raise
  except Exception as error:  # Whatever a decoder throws at broken bytes.
    raise Dropped("unreadable image") from error


def _try(read, *args):
  try:
    return read(*args)
  except UnreadableImage as error:
    raise Dropped("unreadable image") from error


def _reduced(pixels, max_side, changes):
  """uint8 [H, W, 3] of which the longer side is at most `max_side`."""
  height, width = pixels.shape[:2]
  if not max_side or max(height, width) <= max_side:
    return pixels
  changes.append("resized")
  zoom = max_side / max(height, width)
  size = max(1, round(zoom * width)), max(1, round(zoom * height))
  return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _without_exif(jpeg):
  """A JPEG without its EXIF segments; the pixels are the same."""
  kept, at = [jpeg[:2]], 2
  while jpeg[at:at + 1] == b"\xff" and jpeg[at + 1] != 0xDA:  # From there on there are pixels.
    end = at + 2 + int.from_bytes(jpeg[at + 2:at + 4], "big")
    if end <= at + 3:
      break
    if not (jpeg[at + 1] == 0xE1 and jpeg[at + 4:at + 10] == b"Exif\0\0"):
      kept.append(jpeg[at:end])
    at = end
  return b"".join(kept) + jpeg[at:]
