"""Cleans a raw record and lists the changes, or gives a reason to drop it."""

import dataclasses
import html
import io
from typing import Any
import warnings

import numpy as np
from PIL import Image
import simplejpeg

from clip_jax.data.captions import caption_texts
from clip_jax.data.decode import MAX_PIXELS, Picture, UnreadableImage, decode, open_image
from clip_jax.data.outcomes import Dropped

_KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # MPO is a JPEG followed by further JPEGs.
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Cleaning:
  """How `clean` treats images and texts.

  Attributes:
    max_side: maximum length of the longer side in pixels; larger images are downscaled. None for no
      limit.
    quality: quality of the JPEGs that are written, 1 to 100.
    max_text: maximum number of characters; longer texts are truncated at a word boundary. The
      default is more than any tokenizer here reads.
    language: key of the text to use if texts are dicts by language; None to drop dicts.
    unescape_html: whether to replace HTML entities such as &amp; by their characters.
    fix_encoding: whether to repair text that was decoded wrongly, such as "cafÃ©", with ftfy.
    pixels: whether to store decoded pixels, uint8 [H, W, 3], instead of encoded images.
  """

  max_side: int | None = None
  quality: int = 92
  max_text: int = 2000
  language: str | None = None
  unescape_html: bool = False
  fix_encoding: bool = False
  pixels: bool = False


def clean(raw: dict[str, Any], how: Cleaning = Cleaning()) -> tuple[dict[str, Any], list[str]]:
  """Returns a valid training record, with its image re-encoded only if necessary.

  Decodes every image once to detect damaged ones. Ordinary JPEG, PNG and WebP images keep their
  bytes. Images that are animated, CMYK, 16-bit, rotated by EXIF, in another format or larger than
  `max_side` are converted to a JPEG of the first frame, in RGB and with the rotation applied.
  Pixel arrays are stored as PNG. EXIF is removed from JPEGs, because it may contain personal data
  and makes decoding slower. With `pixels`, all images are stored decoded instead.

  Args:
    raw: "image" (encoded bytes or uint8 [H, W, 3]), "text" (see `captions.caption_texts`), and
      further fields, which are kept unchanged. A record with a "label" needs no text.
    how: the options.

  Returns:
    (the record, list of the changes, one or two words each).

  Raises:
    Dropped: "no image", "too many pixels", "unreadable image", or a reason of `caption_texts`.
  """
  changes: list[str] = []
  record = {k: v.item() if isinstance(v, np.generic) else v for k, v in raw.items()}
  if raw.get("image") is None:
    raise Dropped("no image")
  if record.get("text") is not None or raw.get("label") is None:
    record["text"] = _texts(record.get("text"), how, changes)
  else:
    record.pop("text", None)
  if how.pixels and not _is_drawing(raw["image"]):
    record["image"] = _downscale(_try(decode, raw["image"]), how.max_side, changes)
  elif not how.pixels:
    record["image"] = _image(raw["image"], how.max_side, how.quality, changes)
  return record, changes


def _is_drawing(image):
  """Whether an image is pixels with transparency, whose background is not chosen yet."""
  return isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 4


def _texts(given, how, changes):
  """Returns a non-empty str, or a list of at least one non-empty str."""
  texts, left_out = caption_texts(given, how.language)
  changes += [f"one of several texts left out: {reason}" for reason in left_out]
  given = given.get(how.language) if isinstance(given, dict) else given
  if _contains(given, "\ufeff"):
    changes.append("BOM removed")
  texts = [cleaned for text in texts if (cleaned := _text(text, how, changes))]
  if not texts:
    raise Dropped("empty text")
  return texts if isinstance(given, (list, tuple)) else texts[0]


def _contains(given, mark):
  """Whether a text, or one of several, contains a character."""
  for one in given if isinstance(given, (list, tuple)) else (given,):
    if mark in one if isinstance(one, str) else isinstance(one, bytes) and mark.encode() in one:
      return True
  return False


def _text(text, how, changes):
  if how.fix_encoding and not text.isascii():
    import ftfy

    repaired = ftfy.fix_encoding(text).strip()
    changes += ["text repaired"] * (repaired != text)
    text = repaired
  if how.unescape_html and "&" in text:
    unescaped = html.unescape(text).replace("\0", "").strip()
    changes += ["HTML unescaped"] * (unescaped != text)
    text = unescaped
  if len(text) <= how.max_text:
    return text
  changes.append("text cut")
  cut = text[: how.max_text + 1]
  return (cut[: cut.rindex(" ")] if " " in cut else text[: how.max_text]).strip()


def _image(image, max_side, quality, changes):
  """Returns the encoded bytes to store."""
  if isinstance(image, np.ndarray):
    changes.append("encoded")
    out = io.BytesIO()
    pixels = _try(Picture, image).pixels()
    Image.fromarray(_downscale(pixels, max_side, changes)).save(out, "PNG")
    return out.getvalue()
  reasons = _reencoding_reasons(image)
  picture = _try(Picture, image)
  longest, shrink = max(picture.height, picture.width), 1
  kept = not reasons and not (max_side and longest > max_side)
  if kept and picture.can_shrink:
    shrink = 8  # Reads all of the JPEG, so that damage is found, but computes few of the pixels.
  elif max_side and picture.can_shrink:
    # Decode to at least 1.5 times the final size, so that the decoder's scaling is not visible.
    shrink = max(k for k in (1, 2, 4, 8) if k == 1 or longest >= 1.5 * k * max_side)
  pixels = _try(picture.pixels, shrink)
  if not kept:
    pixels = _downscale(pixels, max_side, reasons)
  changes.extend(reasons)
  if kept:
    if image.startswith(b"\xff\xd8") and b"Exif\0\0" in image:
      changes.append("EXIF removed")
      return _without_exif(image)
    return bytes(image)
  return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def _reencoding_reasons(image):
  """Lists the reasons to re-encode an image: properties that some decoders handle differently."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # The size is checked below instead.
      header = open_image(image)
    if header.width * header.height > MAX_PIXELS:
      raise Dropped("too many pixels")
    reasons = [] if header.format in _KEPT else [f"from {header.format}"]
    if header.format != "MPO" and getattr(header, "is_animated", False):
      reasons.append("animated")
    if header.mode == "CMYK":
      reasons.append("CMYK")
    # Pillow silently reads 16-bit colour PNGs as 8-bit, so look at the bit depth in the header.
    if header.mode.startswith("I") or (header.format == "PNG" and image[24] == 16):
      reasons.append("16 bits")
    if header.getexif().get(_ORIENTATION, 1) in range(2, 9):
      reasons.append("turned")
    return reasons
  except Image.DecompressionBombError as error:
    raise Dropped("too many pixels") from error
  except Dropped:
    raise
  except Exception as error:  # Decoders raise many kinds of errors for damaged files.
    raise Dropped("unreadable image") from error


def _try(read, *args):
  try:
    return read(*args)
  except UnreadableImage as error:
    raise Dropped("unreadable image") from error


def _downscale(pixels, max_side, changes):
  """Downscales uint8 [H, W, 3] so that the longer side is at most `max_side`."""
  height, width = pixels.shape[:2]
  if not max_side or max(height, width) <= max_side:
    return pixels
  changes.append("resized")
  zoom = max_side / max(height, width)
  size = max(1, round(zoom * width)), max(1, round(zoom * height))
  return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _without_exif(jpeg):
  """Removes the EXIF segments of a JPEG without changing the pixels."""
  kept, at = [jpeg[:2]], 2
  while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] != 0xDA:  # SOS: start of the pixel data.
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    if end <= at + 3:
      break
    if not (jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0"):
      kept.append(jpeg[at:end])
    at = end
  return b"".join(kept) + jpeg[at:]
