"""Encoded images to pixels."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps
import simplejpeg

MAX_PIXELS = 89_478_485  # Where Pillow begins to warn of a decompression bomb.
_ORIENTATION = 0x0112    # EXIF; 5 to 8 swap height and width.


class UnreadableImage(ValueError):
  """Bytes that are no image, a damaged one, or one too large to be meant."""


class Picture:
  """An image that is decoded when it is looked at, as small as will do, once per scale.

  Attributes:
    height, width: in pixels, the right way up.
    can_shrink: whether `pixels(shrink)` can be asked for less than all pixels.
  """

  def __init__(self, image: Any):
    """Reads the header only.

    Args:
      image: encoded bytes, a Pillow image, or uint8 [H, W, 3].

    Raises:
      UnreadableImage: not an image, or one of more than `MAX_PIXELS`.
    """
    self._pixels = {}
    self.can_shrink = False
    if isinstance(image, Image.Image):
      image = np.asarray(_try(lambda: _rgb(ImageOps.exif_transpose(image))))
    if isinstance(image, np.ndarray):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UnreadableImage(f"An image is uint8 [H, W, 3], not {image.dtype} {image.shape}.")
      self._pixels[1] = image
      self.height, self.width = image.shape[:2]
      return
    self._encoded = image
    if image.startswith(b"\xff\xd8"):
      self.height, self.width, colours, _ = _try(simplejpeg.decode_jpeg_header, image)
      # Most JPEGs go the fast way. libjpeg's own conversion of CMYK is not the usual one.
      self.can_shrink = colours not in ("CMYK", "YCCK") and b"Exif\0\0" not in image
    if not self.can_shrink:
      # Told the format, Pillow does not try all the others first.
      formats = (("WEBP",) if image[8:12] == b"WEBP" else
                 ("PNG",) if image.startswith(b"\x89PNG") else None)
      self._opened = _try(Image.open, io.BytesIO(image), formats=formats)
      self.width, self.height = self._opened.size
      if _try(self._opened.getexif).get(_ORIENTATION) in (5, 6, 7, 8):
        self.height, self.width = self.width, self.height
    if self.height * self.width > MAX_PIXELS:
      raise UnreadableImage(
          f"The image has {self.width} x {self.height} pixels, more than {MAX_PIXELS:,}.")

  def pixels(self, shrink: int = 1) -> np.ndarray:
    """uint8 [ceil(H / shrink), ceil(W / shrink), 3], RGB.

    Args:
      shrink: 1, or if `can_shrink` 2, 4 or 8, which decodes fewer frequencies.

    Raises:
      UnreadableImage: the bytes are damaged.
    """
    if shrink not in self._pixels:
      self._pixels[shrink] = self._decoded(shrink)
    return self._pixels[shrink]

  def _decoded(self, shrink):
    if self.can_shrink:
      # Strict: Pillow would read on over flipped bits.
      return _try(simplejpeg.decode_jpeg, self._encoded, "RGB", min_factor=shrink,
                  min_height=-(-self.height // shrink), min_width=-(-self.width // shrink))
    if shrink != 1:
      raise ValueError(f"This image decodes at its full size only, not at 1/{shrink}.")
    return np.asarray(_try(lambda: _rgb(ImageOps.exif_transpose(self._opened))))


def decode(encoded: bytes) -> np.ndarray:
  """The pixels of an image, the right way up.

  Grey, palette and CMYK images become RGB, 16 bits are scaled to 8, what is transparent shows
  white, an animation gives its first picture, and EXIF orientation is applied.

  Args:
    encoded: bytes of JPEG, PNG, WebP or whatever else Pillow reads; a Pillow image; or uint8
      [H, W, 3], returned as it is.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    UnreadableImage: damaged, truncated, not an image, or of more than `MAX_PIXELS`.
  """
  return Picture(encoded).pixels()


def _try(read, *args, **kwargs):
  """read(...), whatever a decoder throws at broken bytes turned into one type of error."""
  try:
    return read(*args, **kwargs)
  except UnreadableImage:
    raise
  except Exception as error:
    raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _rgb(image):
  """A Pillow image of any mode -> mode RGB."""
  if image.mode == "I" or image.mode.startswith("I;16"):
    wide = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise UnreadableImage("Float pixels have no agreed range.")
  if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
  return image.convert("RGB")
