"""Retrieval: does a caption find its image among all images, and an image one of its captions?"""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.decode import UnreadableImage, decode
from clip_jax.errors import UserError
from clip_jax.evaluators.accuracy import TIE
from clip_jax.evaluators.answers import Answer, Question, binomial_error, places, told
from clip_jax.evaluators.shared import Shared, check_resize
from clip_jax.interfaces import Embedder, Source
from clip_jax.sheet import AMBER, CELL, GAP, GREEN, GREY, INK, LINE, MARGIN, PAPER, card, wrapped


class Retrieval(Question):
  """Recall in both directions, over any number of captions per image.

  Image to text: a hit at k is an image with at least one of its own captions among the k captions
  nearest to it. Text to image: a hit at k is a caption with its image among the k nearest. Ties
  count against, because a model that gives everything one score has found nothing.
  """

  def __init__(self, source: Source, limit: int | None = None, block: int = 4096,
               resize: str | None = None):
    """Asks about the records of `source`.

    Args:
      source: records {"image": ..., "text": one caption or several}.
      limit: ask only about this many records, spread evenly over the source; None for all.
      block: rows and columns of scores made at a time; bounds the memory, not the answer.
      resize: how images are made the model's size, a name in `shared.RESIZES`; None for the
        model's own way.

    Raises:
      UserError: there is nothing to ask about, or no such `resize`.
    """
    check_resize(resize)
    self._source, self._resize, self._block = source, resize, block
    self._places = places(source, limit)

  def answer(self, embedder: Embedder) -> Answer:
    """`{image_to_text,text_to_image}_{r1,r5,r10}` in percent, `.._median_rank` (1 is best), counts.

    Raises:
      UserError: a record has no image, no text, or a text that is not one.
    """
    images, z_text, owner, _ = self._embed(embedder)
    image_rank, text_rank = ranks(images.z, z_text, owner, block=self._block)
    metrics = {
        **_summary("image_to_text", image_rank), **_summary("text_to_image", text_rank),
        "examples": float(len(images.z)), "captions": float(len(z_text))}
    return Answer(metrics, told(self._source, images, standard_error={
        f"{direction}_r{k}": binomial_error(metrics[f"{direction}_r{k}"] / 100, len(rank))
        for direction, rank in (("image_to_text", image_rank), ("text_to_image", text_rank))
        for k in (1, 5, 10)}))

  def picture(self, embedder: Embedder, rows: int = 8) -> Image.Image:
    """A contact sheet: captions spread evenly over the set, each with its five nearest images.

    Raises:
      UserError: as in the call.
    """
    images, z_text, owner, texts = self._embed(embedder)
    z_image = images.z
    image_rank, text_rank = ranks(z_image, z_text, owner, block=self._block)
    sheet = []
    for i in np.unique((np.arange(rows) * 2 + 1) * len(texts) // (2 * rows)):  # Middles of parts.
      # Best first, and among equals the own image last, as its rank says.
      order = np.argsort(-np.nan_to_num(z_image @ z_text[i], nan=-2.0), kind="stable")
      order = np.insert(order[order != owner[i]], text_rank[i], owner[i])
      sheet.append((texts[i], int(text_rank[i]), [self._image(j) for j in order[:5]],
                    self._image(owner[i])))
    forth, back = (_summary("", rank)["_r10"] for rank in (text_rank, image_rank))
    return contact_sheet(
        sheet, title=f"Captions and the five nearest of {len(z_image):,} images",
        subtitle=f"R@10   text to image {forth:.1f} %     image to text {back:.1f} %     "
                 f"text to image by chance {100 * min(1, 10 / len(z_image)):.1f} %")

  def _image(self, i: int) -> np.ndarray:
    image = self._source[int(self._places[i])]["image"]
    try:
      return decode(image)
    except UnreadableImage:
      return np.zeros((1, 1, 3), np.uint8)  # A black square: counted, and never found.

  def _embed(self, embedder):
    """The images, z_text [m, E], the image that each text belongs to [m], the texts."""
    shared = Shared.of(embedder)
    images = shared.images(self._source, self._places, fields=("text",), resize=self._resize)
    own = [_captions(record["text"], place) for record, place in zip(images.records, self._places)]
    texts = [text for captions in own for text in captions]
    owner = np.repeat(np.arange(len(own)), [len(captions) for captions in own])
    return images, shared.texts(texts), owner, texts


def _captions(text: Any, place: int) -> list[str]:
  texts = [text] if isinstance(text, str) else text
  if (not isinstance(texts, (list, tuple)) or not texts
      or not all(isinstance(t, str) for t in texts)):
    raise UserError(
        f"Record {place} has text {text!r}; expected a caption, or a list of at least one. Leave "
        "records without a caption out of the source.")
  return list(texts)


_LOWEST = -1e30  # Below every score, and above what stands for "does not compete".


def ranks(z_image: np.ndarray, z_text: np.ndarray, owner: np.ndarray, *,
          block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
  """How many wrong candidates score at least as high as the right one; 0 is a hit at 1.

  Scores are made a block by a block and counted: 100,000 images against 500,000 texts need the
  memory of one block. What is not a number counts against, wherever it stands.

  Args:
    z_image, z_text: float32 [n, E], [m, E], unit length.
    owner: int [m], the image that each text belongs to; every image has at least one text.
    block: rows and columns of scores at a time.

  Returns:
    int64 [n], of each image: texts of other images that score at least as high as its best own one;
    int64 [m], of each text: other images that score at least as high as its own one.
  """
  own = np.einsum("me,me->m", z_image[owner], z_text)  # Against each text's own image.
  best = np.full(len(z_image), -np.inf, np.float32)
  with np.errstate(invalid="ignore"):
    np.maximum.at(best, owner, own)  # Passes NaN on, unlike fmax: one bad text spoils its image.
  # What scores less than this is beaten; against what is not a number nothing is.
  image_bar, text_bar = (np.nan_to_num(x - np.float32(TIE), nan=_LOWEST) for x in (best, own))
  image_rank, text_rank = np.zeros(len(z_image), np.int64), np.zeros(len(z_text), np.int64)
  order = np.argsort(owner, kind="stable")  # So that the own texts of a block of images are a run.
  for i in range(0, len(z_image), block):
    rows = slice(i, i + block)
    mine = order[np.searchsorted(owner[order], i):np.searchsorted(owner[order], i + block)]
    for j in range(0, len(z_text), block):
      columns = slice(j, j + block)
      scores = z_image[rows] @ z_text[columns].T  # [block, block]
      here = mine[(mine >= j) & (mine < j + block)]
      scores[owner[here] - i, here - j] = -np.inf  # Below every bar: the own ones do not compete.
      # Counts what is beaten, because NaN is less than nothing: a diverged model finds nothing.
      image_rank[rows] += scores.shape[1] - np.count_nonzero(scores < image_bar[rows, None], axis=1)
      text_rank[columns] += scores.shape[0] - np.count_nonzero(
          scores < text_bar[None, columns], axis=0)
  return image_rank, text_rank


def _summary(direction: str, rank: np.ndarray) -> dict[str, float]:
  """Recall at 1, 5 and 10 in percent, and the median rank counted from 1."""
  recalls = {f"{direction}_r{k}": 100 * float(np.mean(rank < k)) for k in (1, 5, 10)}
  return {**recalls, f"{direction}_median_rank": 1 + float(np.median(rank))}


_CAPTION, _HEAD = 250, 132  # Pixels of the contact sheet.


def contact_sheet(rows: list[tuple[str, int, list[np.ndarray], np.ndarray]], *, title: str,
                  subtitle: str) -> Image.Image:
  """Draws captions with the images found for them; the right one is framed in green.

  Args:
    rows: of each caption: its text, the rank of the right image (0 is first), the nearest images,
      best first, and the right image; images are uint8 [H, W, 3].
    title, subtitle: the two lines above.

  Returns:
    An RGB image.
  """
  pitch = CELL + GAP
  missed = MARGIN + _CAPTION + 5 * pitch + 2 * GAP  # Left edge of what should have been found.
  width, height = missed + CELL + MARGIN, _HEAD + len(rows) * (pitch + GAP) + MARGIN - 2 * GAP
  sheet = Image.new("RGB", (width, height), PAPER)
  draw = ImageDraw.Draw(sheet)
  large, middle, small = (ImageFont.load_default(size) for size in (26, 17, 14))
  draw.text((MARGIN, 24), title, INK, large)
  draw.text((MARGIN, 62), subtitle, GREY, middle)
  for k in range(5):
    x = MARGIN + _CAPTION + k * pitch + CELL // 2
    draw.text((x, _HEAD - 22), f"{k + 1}", GREY, small, anchor="mm")
  draw.text((missed + CELL // 2, _HEAD - 22), "right one, if missed", GREY, small, anchor="mm")
  for number, (text, rank, nearest, right) in enumerate(rows):
    y = _HEAD + number * (pitch + GAP)
    draw.line((MARGIN, y - GAP, width - MARGIN, y - GAP), LINE)
    found = rank < len(nearest)
    lines = wrapped(draw, text, middle, _CAPTION - 2 * GAP, 4)
    for i, line in enumerate(lines):
      draw.text((MARGIN, y + 8 + i * 23), line, INK, middle)
    draw.text((MARGIN, y + 14 + len(lines) * 23), f"rank {rank + 1:,}",
              GREEN if found else AMBER, small)
    for k, image in enumerate(nearest):
      hit = k == rank
      card(sheet, image, (MARGIN + _CAPTION + k * pitch, y), GREEN if hit else LINE,
             4 if hit else 1)
    if not found:
      card(sheet, right, (missed, y), AMBER, 2)
  return sheet
