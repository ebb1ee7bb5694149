"""Image-text retrieval: recall and median rank in both directions."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip_jax.cli.values import PositiveInt, Records, checked
from clip_jax.data.decode import UnreadableImage, decode
from clip_jax.errors import UserError
from clip_jax.evaluators.accuracy import TIE
from clip_jax.evaluators.embedding_cache import Resizing
from clip_jax.evaluators.results import (
  Context,
  Evaluator,
  Result,
  binomial_error,
  check_first_record,
  evaluated_records,
  source_detail,
)
from clip_jax.inference.contact_sheet import (
  AMBER,
  CELL,
  GAP,
  GREEN,
  GREY,
  INK,
  LINE,
  MARGIN,
  PAPER,
  draw_card,
  wrap_text,
)
from clip_jax.interfaces import Source


@checked
class Retrieval(Evaluator):
  """Image-to-text and text-to-image recall, for any number of captions per image.

  Image-to-text R@k is the percentage of images that have at least one of their own captions among
  the k nearest captions. Text-to-image R@k is the percentage of captions that have their image
  among the k nearest images. Ties count as misses, so that a model that gives every pair the same
  score has a recall of 0.
  """

  def __init__(
    self,
    source: Source,
    limit: Records | None = None,
    chunk_size: PositiveInt = 4096,
    resize: Resizing | None = None,
  ):
    """Creates the evaluator.

    Args:
      source: records {"image": ..., "text": one caption or several}.
      limit: maximum number of records, spread evenly over the source; None for all.
      chunk_size: rows and columns of scores computed at a time; changes only the memory needed.
      resize: how images are resized to the model's input size, a name in
        `embedding_cache.RESIZES`; None for the model's own preprocessing.

    Raises:
      UserError: an empty source, or a first record without image or text.
    """
    self._source, self._resize, self._block = source, resize, chunk_size
    self._places = evaluated_records(source, limit)
    check_first_record(source, self._places, ("image", "text"))

  def evaluate(self, context: Context) -> Result:
    """Computes recalls, median ranks and counts.

    The metrics are `{image_to_text,text_to_image}_{r1,r5,r10}` in percent,
    `{image_to_text,text_to_image}_median_rank` (1 is best), `examples` and `captions`.

    Raises:
      UserError: a record has no image or text, or its text is not one or several strings.
    """
    images, z_text, owner, _ = self._embed(context)
    image_rank, text_rank = ranks(images.z, z_text, owner, chunk_size=self._block)
    metrics = {
      **_summary("image_to_text", image_rank),
      **_summary("text_to_image", text_rank),
      "examples": float(len(images.z)),
      "captions": float(len(z_text)),
    }
    return Result(
      metrics,
      source_detail(
        self._source,
        images,
        standard_error={
          f"{direction}_r{k}": binomial_error(metrics[f"{direction}_r{k}"] / 100, len(rank))
          for direction, rank in (("image_to_text", image_rank), ("text_to_image", text_rank))
          for k in (1, 5, 10)
        },
      ),
    )

  def figure(self, context: Context, rows: int = 8) -> Image.Image:
    """Draws a contact sheet: captions spread evenly over the set and their five nearest images.

    Args:
      context: the model.
      rows: maximum number of captions.

    Raises:
      UserError: as for `evaluate`.
    """
    images, z_text, owner, texts = self._embed(context)
    z_image = images.z
    image_rank, text_rank = ranks(z_image, z_text, owner, chunk_size=self._block)
    sheet = []
    # Take the middle caption of each of `rows` equal parts.
    for i in np.unique((np.arange(rows) * 2 + 1) * len(texts) // (2 * rows)):
      # Best first. Insert the correct image at its rank, which puts it last among ties.
      order = np.argsort(-np.nan_to_num(z_image @ z_text[i], nan=-2.0), kind="stable")
      order = np.insert(order[order != owner[i]], text_rank[i], owner[i])
      sheet.append(
        (texts[i], int(text_rank[i]), [self._image(j) for j in order[:5]], self._image(owner[i]))
      )
    forth, back = (_summary("", rank)["_r10"] for rank in (text_rank, image_rank))
    return contact_sheet(
      sheet,
      title=f"Captions and their five nearest images out of {len(z_image):,}",
      subtitle=f"R@10   text to image {forth:.1f} %     image to text {back:.1f} %     "
      f"text to image at chance {100 * min(1, 10 / len(z_image)):.1f} %",
    )

  def _image(self, i: int) -> np.ndarray:
    image = self._source[int(self._places[i])]["image"]
    try:
      return decode(image)
    except UnreadableImage:
      return np.zeros((1, 1, 3), np.uint8)  # Drawn as a black square.

  def _embed(self, context):
    """Returns the images, text embeddings [m, E], image of each text [m], and the texts."""
    cache = context.embedder
    images = cache.images(self._source, self._places, fields=("text",), resize=self._resize)
    own = [_captions(record["text"], place) for record, place in zip(images.records, self._places)]
    texts = [text for captions in own for text in captions]
    owner = np.repeat(np.arange(len(own)), [len(captions) for captions in own])
    return images, cache.texts(texts), owner, texts


def _captions(text: Any, place: int) -> list[str]:
  texts = [text] if isinstance(text, str) else text
  if (
    not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts)
  ):
    raise UserError(
      f"Record {place} has text {text!r}; expected a caption or a non-empty list of captions. "
      "Remove records without captions from the source."
    )
  return list(texts)


_LOWEST = -1e30  # Below every score, but above the -inf of masked scores.


def ranks(
  z_image: np.ndarray, z_text: np.ndarray, owner: np.ndarray, *, chunk_size: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
  """Counts the wrong candidates that score at least as high as the correct one; 0 is a hit at 1.

  Scores are computed in chunks of `block` x `block`, so that 100,000 images and 500,000 texts need
  the memory of one chunk. NaN scores count as errors.

  Args:
    z_image: image embeddings of unit length, float32 [n, E].
    z_text: text embeddings of unit length, float32 [m, E].
    owner: int [m], the image that each text belongs to; every image has at least one text.
    chunk_size: rows and columns of scores computed at a time.

  Returns:
    For each image, the number of texts of other images that score at least as high as its best own
    text, int64 [n]; for each text, the number of other images that score at least as high as its
    own image, int64 [m].
  """
  own = np.einsum("me,me->m", z_image[owner], z_text)  # Score of each text and its own image.
  best = np.full(len(z_image), -np.inf, np.float32)
  with np.errstate(invalid="ignore"):
    np.maximum.at(best, owner, own)  # Unlike fmax, maximum propagates the NaN of any text.
  # A candidate ranks below the correct one if it scores below this bar. The bar of a NaN score is
  # so low that no candidate does.
  image_bar, text_bar = (np.nan_to_num(x - np.float32(TIE), nan=_LOWEST) for x in (best, own))
  image_rank, text_rank = np.zeros(len(z_image), np.int64), np.zeros(len(z_text), np.int64)
  order = np.argsort(owner, kind="stable")  # Makes the texts of a block of images contiguous.
  for i in range(0, len(z_image), chunk_size):
    rows = slice(i, i + chunk_size)
    mine = order[np.searchsorted(owner[order], i) : np.searchsorted(owner[order], i + chunk_size)]
    for j in range(0, len(z_text), chunk_size):
      columns = slice(j, j + chunk_size)
      scores = z_image[rows] @ z_text[columns].T  # [block, block]
      here = mine[(mine >= j) & (mine < j + chunk_size)]
      scores[owner[here] - i, here - j] = -np.inf  # Mask correct pairs: they are below every bar.
      # Count the scores below the bar and subtract, because comparisons with NaN are false: the
      # NaN scores of a diverged model must count as errors.
      image_rank[rows] += scores.shape[1] - np.count_nonzero(scores < image_bar[rows, None], axis=1)
      text_rank[columns] += scores.shape[0] - np.count_nonzero(
        scores < text_bar[None, columns], axis=0
      )
  return image_rank, text_rank


def _summary(direction: str, rank: np.ndarray) -> dict[str, float]:
  """Computes recall at 1, 5 and 10 in percent, and the median rank, counted from 1."""
  recalls = {f"{direction}_r{k}": 100 * float(np.mean(rank < k)) for k in (1, 5, 10)}
  return {**recalls, f"{direction}_median_rank": 1 + float(np.median(rank))}


_CAPTION, _HEAD = 250, 132  # Width of captions and height of the header in pixels.


def contact_sheet(
  rows: list[tuple[str, int, list[np.ndarray], np.ndarray]], *, title: str, subtitle: str
) -> Image.Image:
  """Draws captions with their nearest images; a green frame marks the correct image.

  Args:
    rows: for each caption, its text, the rank of the correct image (0 is first), the nearest
      images, best first, and the correct image; images are uint8 [H, W, 3].
    title: first line of the header.
    subtitle: second line of the header.

  Returns:
    An RGB image.
  """
  pitch = CELL + GAP
  missed = MARGIN + _CAPTION + 5 * pitch + 2 * GAP  # Left edge of the column of missed images.
  width, height = missed + CELL + MARGIN, _HEAD + len(rows) * (pitch + GAP) + MARGIN - 2 * GAP
  sheet = Image.new("RGB", (width, height), PAPER)
  draw = ImageDraw.Draw(sheet)
  large, middle, small = (ImageFont.load_default(size) for size in (26, 17, 14))
  draw.text((MARGIN, 24), title, INK, large)
  draw.text((MARGIN, 62), subtitle, GREY, middle)
  for k in range(5):
    x = MARGIN + _CAPTION + k * pitch + CELL // 2
    draw.text((x, _HEAD - 22), f"{k + 1}", GREY, small, anchor="mm")
  draw.text((missed + CELL // 2, _HEAD - 22), "correct, if missed", GREY, small, anchor="mm")
  for number, (text, rank, nearest, right) in enumerate(rows):
    y = _HEAD + number * (pitch + GAP)
    draw.line((MARGIN, y - GAP, width - MARGIN, y - GAP), LINE)
    found = rank < len(nearest)
    lines = wrap_text(draw, text, middle, _CAPTION - 2 * GAP, 4)
    for i, line in enumerate(lines):
      draw.text((MARGIN, y + 8 + i * 23), line, INK, middle)
    draw.text(
      (MARGIN, y + 14 + len(lines) * 23), f"rank {rank + 1:,}", GREEN if found else AMBER, small
    )
    for k, image in enumerate(nearest):
      hit = k == rank
      draw_card(
        sheet, image, (MARGIN + _CAPTION + k * pitch, y), GREEN if hit else LINE, 4 if hit else 1
      )
    if not found:
      draw_card(sheet, right, (missed, y), AMBER, 2)
  return sheet
