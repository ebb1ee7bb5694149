"""Draws contact sheets: a grid of images, each with a text below it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.decode import decode

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CELL, GAP, MARGIN = 128, 14, 28  # Pixels.
PAPER, CARD, INK, GREY, LINE = "#f6f7f9", "#ffffff", "#1d2330", "#79808f", "#d3d7df"
GREEN, AMBER = "#16a34a", "#d97706"


def contact_sheet(
  images: Sequence[Any], texts: Sequence[str], *, title: str, columns: int = 5
) -> Image.Image:
  """Draws images row by row, each with its text below it.

  Args:
    images: images in any form that `decode` accepts.
    texts: text below each image, wrapped to at most three lines.
    title: title of the sheet, truncated to one line.
    columns: maximum number of images per row.

  Returns:
    An RGB image.
  """
  columns = max(1, min(columns, len(images)))
  width = max(2 * MARGIN + columns * (CELL + GAP) - GAP, 480)
  measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
  large, small = (ImageFont.load_default(size) for size in (26, 14))
  lines = [wrap_text(measure, text, small, CELL, 3) for text in texts]
  head, under = 84, 20 + 17 * (max(map(len, lines), default=1) - 1)
  pitch = CELL + GAP + under
  sheet = Image.new("RGB", (width, head + -(-len(images) // columns) * pitch + MARGIN - GAP), PAPER)
  draw = ImageDraw.Draw(sheet)
  draw.text((MARGIN, 26), "".join(wrap_text(draw, title, large, width - 2 * MARGIN, 1)), INK, large)
  for k, (image, below) in enumerate(zip(images, lines, strict=True)):
    x, y = MARGIN + k % columns * (CELL + GAP), head + k // columns * pitch
    draw_card(sheet, decode(image), (x, y), LINE, 1)
    for i, line in enumerate(below):
      draw.text((x + CELL // 2, y + CELL + 11 + 17 * i), line, GREY, small, anchor="mm")
  return sheet


def draw_card(
  sheet: Image.Image, image: np.ndarray, corner: tuple[int, int], colour: str, line: int
) -> None:
  """Draws a card with a frame of width `line` and the image, uint8 [H, W, 3], scaled to fit."""
  x, y = corner
  draw = ImageDraw.Draw(sheet)
  draw.rounded_rectangle((x, y, x + CELL - 1, y + CELL - 1), 8, CARD, colour, line)
  picture = Image.fromarray(image)
  scale = (CELL - 16) / max(picture.size)
  width, height = (max(1, round(side * scale)) for side in picture.size)
  sheet.paste(
    picture.resize((width, height), Image.Resampling.LANCZOS),
    (x + (CELL - width) // 2, y + (CELL - height) // 2),
  )


def wrap_text(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int, most: int) -> list[str]:
  """Wraps `text` to at most `most` lines of `width` pixels; truncated text ends in "..."."""
  lines, rest = [], " ".join(text.split())
  while rest and len(lines) < most:
    count = len(rest)
    while count > 1 and draw.textlength(rest[:count], font) > width:
      count -= 1
    if count < len(rest) and " " in rest[: count + 1].strip():
      count = rest[: count + 1].rindex(" ")  # Break at a space, unless one word fills the line.
    lines.append(rest[:count].strip())
    rest = rest[count:].strip()
  if rest:
    last = lines[-1]
    while last and draw.textlength(last + "...", font) > width:
      last = last[:-1]
    lines[-1] = last.rstrip() + "..."
  return lines
