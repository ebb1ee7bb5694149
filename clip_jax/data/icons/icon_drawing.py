"""Draws icons: SVG to pixels with resvg, and the colours of those that have none of their own."""

from collections.abc import Sequence
import io

import numpy as np
from PIL import Image

from clip_jax.cli.optional import optional
from clip_jax.data.decode import UnreadableImage

# Colours to draw in, in RGB, with their names for captions.
INKS = {
  "black": (0, 0, 0),
  "red": (214, 39, 40),
  "orange": (245, 130, 20),
  "yellow": (240, 200, 30),
  "green": (44, 150, 44),
  "cyan": (30, 180, 200),
  "blue": (40, 90, 210),
  "purple": (140, 70, 190),
  "pink": (235, 110, 180),
  "brown": (130, 80, 45),
  "grey": (120, 120, 120),
  "white": (255, 255, 255),
}


class BrokenDrawing(UnreadableImage):
  """An icon that cannot be drawn, or that shows nothing.

  Attributes:
    key: the icon, "SET:NAME".
    reason: "broken drawing" or "blank drawing".
  """

  def __init__(self, key: str, reason: str, detail: str = ""):
    super().__init__(f"{key} is a {reason}{detail}")
    self.key, self.reason = key, reason


def svg(
  body: str,
  box: tuple[float, float, float, float],
  *,
  rotate: int = 0,
  h_flip: bool = False,
  v_flip: bool = False,
) -> str:
  """Returns the SVG document of an icon, centred in a square.

  Args:
    body: the SVG elements.
    box: (left, top, width, height) of the drawing in its own coordinates.
    rotate: quarter turns clockwise, after the flips.
    h_flip, v_flip: whether to mirror it, left to right and top to bottom.
  """
  left, top, width, height = box
  side = max(width, height)
  # About the origin: the centre of the box moves there, then flips, then turns.
  transform = f"translate({-left - width / 2} {-top - height / 2})"
  if h_flip or v_flip:
    transform = f"scale({-1 if h_flip else 1} {-1 if v_flip else 1}) {transform}"
  if rotate % 4:
    transform = f"rotate({90 * (rotate % 4)}) {transform}"
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    f'viewBox="{-side / 2} {-side / 2} {side} {side}"><g transform="{transform}">{body}</g></svg>'
  )


def draw(document: str, size: int, key: str) -> bytes:
  """Draws an SVG document.

  Args:
    document: from `svg`.
    size: side of the image in pixels, S.
    key: the icon, for errors.

  Returns:
    A PNG of S x S pixels: grey, black on white, if all of the drawing is black or the current
    colour; otherwise RGBA.

  Raises:
    BrokenDrawing: it is not SVG that resvg understands, or nothing of it is visible.
    UserError: resvg is not installed.
  """
  resvg = optional("resvg_py", "icons")
  try:
    png = resvg.svg_to_bytes(svg_string=document, width=size, height=size, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA"))
  except Exception as error:  # ValueError, and what its Rust code panics with.
    raise BrokenDrawing(key, "broken drawing", f": {error}") from error
  cover = pixels[..., 3]
  if cover.max() < 16:
    raise BrokenDrawing(key, "blank drawing")
  if pixels[..., :3][cover > 0].any():
    return bytes(png)
  out = io.BytesIO()
  Image.fromarray(255 - cover).save(out, "PNG", compress_level=6)
  return out.getvalue()


def decode_drawing(image: bytes | np.ndarray) -> np.ndarray:
  """Decodes a drawing.

  Args:
    image: a PNG from `draw`; or its pixels, uint8 [S, S, 3] without colours or [S, S, 4].

  Returns:
    uint8 [S, S], black on white, if it has no colours; else RGBA [S, S, 4].
  """
  if isinstance(image, np.ndarray):
    return image if image.shape[2] == 4 else image[..., 0]
  return np.asarray(Image.open(io.BytesIO(image), formats=("PNG",)))


def paint(
  drawing: np.ndarray,
  ink: Sequence[int] | np.ndarray = (0, 0, 0),
  paper: Sequence[int] | np.ndarray = (255, 255, 255),
) -> np.ndarray:
  """Paints a drawing on a background.

  Args:
    drawing: uint8 [S, S], black on white; or RGBA [S, S, 4], which keeps its colours.
    ink: colour of a drawing without its own.
    paper: colour of the background.

  Returns:
    uint8 [S, S, 3].
  """
  if drawing.ndim == 3:
    cover = drawing[..., 3:].astype(np.uint16)
    mixed = drawing[..., :3] * cover + np.array(paper, np.uint16) * (255 - cover)
    return ((mixed + 127) // 255).astype(np.uint8)
  if tuple(ink) == (0, 0, 0) and tuple(paper) == (255, 255, 255):
    return np.repeat(drawing[..., None], 3, axis=2)
  grey = np.arange(256, dtype=np.uint16)[:, None]
  table = (np.array(paper, np.uint16) * grey + np.array(ink, np.uint16) * (255 - grey) + 127) // 255
  return table.astype(np.uint8)[drawing]


def random_colours(rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
  """Draws colours that are easy to distinguish.

  Returns:
    Name of the ink in `INKS`, the ink near it, and the paper; RGB, int [3].
  """
  names = list(INKS)
  name = names[int(rng.integers(len(names)))]
  ink = np.clip(np.array(INKS[name]) + rng.integers(-15, 16, 3), 0, 255)
  light = np.array([0.3, 0.59, 0.11])
  while True:
    paper = rng.integers(200, 256, 3) if rng.random() < 0.6 else rng.integers(0, 256, 3)
    if abs(float((paper - ink) @ light)) > 80:
      return name, ink, paper
