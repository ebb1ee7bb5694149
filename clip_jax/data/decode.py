"""Decodes images to RGB pixels."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps
import simplejpeg

from clip_jax.data.memory_budget import Memory, MemoryBudget, return_freed_memory

MAX_PIXELS = 89_478_485  # Pillow's threshold for its decompression bomb warning.
MAX_BYTES = 300_000_000  # Of an encoded image; enough for `MAX_PIXELS` without compression.
# Pillow reads more formats, some by running other programs, which is unsafe for untrusted files.
# JPEG includes MPO, a JPEG followed by further ones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "DIB", "PPM", "QOI")
# Endings of files in these formats.
ENDINGS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif"),
  *(".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
)
# For all images that threads of this process decode at the same time.
MEMORY = MemoryBudget(2**30)
_LARGE = 2**28
# Measured peaks of decoding in bytes per pixel: simplejpeg's, Pillow's (16-bit PNG), WebP's.
_JPEG_COST, _PILLOW_COST, _WEBP_COST = 8, 16, 24
_KEPT_COST = 7  # An array, and Pillow's copy of it while a crop is resized.
_PROGRESSIVE_COST = 6  # A progressive JPEG's coefficients, whatever the scale of the output.
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap height and width.


class UnreadableImage(ValueError):
  """The bytes are not an image, or the image is damaged or implausibly large."""


def open_image(encoded: bytes) -> Image.Image:
  """Opens encoded bytes in one of `FORMATS` with Pillow, reading only the header.

  Raises:
    OSError: another format, and many other errors for damaged bytes.
  """
  # Naming the format keeps Pillow from trying all the others first.
  formats = (
    ("WEBP",) if encoded[8:12] == b"WEBP" else ("PNG",) if encoded[:4] == b"\x89PNG" else FORMATS
  )
  return Image.open(io.BytesIO(encoded), formats=formats)


class Picture:
  """A lazily decoded image: decodes at a reduced scale on request and caches each scale.

  While it has pixels it holds memory of `MEMORY`, and decoding may wait for other threads.

  Attributes:
    height, width: size in pixels, after applying the EXIF orientation.
    can_shrink: whether `pixels(shrink)` accepts a `shrink` other than 1.
  """

  def __init__(self, image: Any):
    """Reads only the header of encoded bytes, except that Pillow decodes a PNG.

    Args:
      image: encoded bytes, a Pillow image, or uint8 [H, W, 3].

    Raises:
      UnreadableImage: not an image, or an image with more than `MAX_PIXELS` pixels.
    """
    self._pixels = {}
    self._memory: Memory | None = None
    self.can_shrink = False
    if isinstance(image, Image.Image):
      image = np.asarray(_try(lambda: _rgb(ImageOps.exif_transpose(image))))
    if isinstance(image, np.ndarray):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UnreadableImage(
          f"Expected an image as uint8 [H, W, 3], not {image.dtype} {image.shape}."
        )
      self._pixels[1] = image
      self.height, self.width = image.shape[:2]
      return
    self._encoded = image
    if image.startswith(b"\xff\xd8"):
      has_exif, self._progressive = _jpeg_properties(image)
      self.height, self.width, colours, _ = _try(simplejpeg.decode_jpeg_header, image)
      # Leave CMYK and EXIF to Pillow: libjpeg converts CMYK differently and does not rotate.
      self.can_shrink = colours not in ("CMYK", "YCCK") and not has_exif
    if not self.can_shrink:
      self._opened = _try(open_image, image)
      self.width, self.height = self._opened.size
    if self.height * self.width > MAX_PIXELS:
      raise UnreadableImage(
        f"The image has {self.width} x {self.height} pixels, more than {MAX_PIXELS:,}."
      )
    if not self.can_shrink and self._is_turned():
      self.height, self.width = self.width, self.height

  def _is_turned(self):
    """Whether EXIF says to swap height and width."""
    if self._opened.format == "PNG":  # EXIF may come last, so Pillow decodes the pixels first.
      self._memory = MEMORY.take(self._cost(1))
    try:
      return self._opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception as error:
      self._memory = None
      raise UnreadableImage(f"{type(error).__name__}: {error}") from error

  def pixels(self, shrink: int = 1) -> np.ndarray:
    """Returns the RGB pixels, uint8 [ceil(H / shrink), ceil(W / shrink), 3].

    Args:
      shrink: 1, or 2, 4 or 8 if `can_shrink`; the JPEG decoder then skips the high frequencies.

    Raises:
      UnreadableImage: the bytes are damaged.
      ValueError: `shrink` is not 1 and the image cannot be decoded at a reduced size.
    """
    if shrink != 1 and not self.can_shrink:
      raise ValueError(f"This image can be decoded at full size only, not at 1/{shrink}.")
    if shrink not in self._pixels:
      kept = _KEPT_COST * sum(x.size for x in self._pixels.values()) // 3
      self._memory = MEMORY.take(kept + self._cost(shrink))
      try:
        self._pixels[shrink] = self._decoded(shrink)
      except BaseException:
        # The traceback may keep this object for long.
        self._memory = MEMORY.take(kept) if kept else None
        raise
      if self._memory.size > _LARGE:
        return_freed_memory()
      self._memory.shrink(kept + _KEPT_COST * self._pixels[shrink].size // 3)
    return self._pixels[shrink]

  def _cost(self, shrink):
    """Estimates the bytes that decoding needs at its peak, with the result."""
    area = self.height * self.width
    if not self.can_shrink:
      return area * (_WEBP_COST if self._opened.format in ("WEBP", "AVIF") else _PILLOW_COST)
    return area * _JPEG_COST // shrink**2 + area * _PROGRESSIVE_COST * self._progressive

  def _decoded(self, shrink):
    if self.can_shrink:
      # simplejpeg is strict by default; Pillow would decode past flipped bits without an error.
      return _try(
        simplejpeg.decode_jpeg,
        self._encoded,
        "RGB",
        min_factor=shrink,
        min_height=-(-self.height // shrink),
        min_width=-(-self.width // shrink),
      )
    pixels = np.asarray(_try(lambda: _rgb(ImageOps.exif_transpose(self._opened))))
    del self._opened  # It keeps its own copy.
    return pixels


def decode(encoded: bytes) -> np.ndarray:
  """Decodes an image to RGB pixels.

  Converts grey, palette and CMYK images to RGB, scales 16 bits to 8, composites transparency onto
  white, takes the first frame of an animation, and applies the EXIF orientation.

  Args:
    encoded: bytes in JPEG, PNG, WebP or another format that Pillow reads; a Pillow image; or uint8
      [H, W, 3], which is returned unchanged.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    UnreadableImage: damaged, truncated, not an image, or more than `MAX_PIXELS` pixels.
  """
  return Picture(encoded).pixels()


def _jpeg_properties(image):
  """Returns (whether a JPEG has EXIF, whether it is progressive), from the markers of its header.

  A search of all bytes takes as long as a tenth of the decoding.
  """
  at, has_exif = 2, False
  while image[at : at + 1] == b"\xff" and at + 4 <= len(image):
    marker = image[at + 1]
    if marker == 0xFF:  # A fill byte.
      at += 1
      continue
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # A start of frame.
      return has_exif, marker in (0xC2, 0xC6, 0xCA, 0xCE)
    if marker == 0xE1 and image[at + 4 : at + 10] == b"Exif\0\0":
      has_exif = True
    at += (
      2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 2 + (image[at + 2] << 8 | image[at + 3])
    )
  # An unusual header: look at all bytes, to be safe.
  return b"Exif\0\0" in image, b"\xff\xc2" in image


def _try(read, *args, **kwargs):
  """Calls `read` and turns any exception from a decoder into `UnreadableImage`."""
  try:
    return read(*args, **kwargs)
  except UnreadableImage:
    raise
  except Exception as error:
    raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _rgb(image):
  """Converts a Pillow image of any mode to RGB."""
  if image.mode == "I" or image.mode.startswith("I;16"):
    wide = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise UnreadableImage("Float pixels have no standard value range.")
  if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
  return image.convert("RGB")
