"""How fast the pipeline makes examples, beside a plain loop and beside Pillow alone."""

from collections.abc import Callable, Iterator
import io
import resource
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
import simplejpeg

from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.interfaces import Source

SIZES = ((400, 300), (640, 480), (1600, 1200))  # Width and height.
_BATCH = 16
_ROUNDS = 3  # Of all ways in turn, so that a machine's moods meet all of them.


def compare(seconds: float = 3.0, sizes: tuple[tuple[int, int], ...] = SIZES, *, crop: int = 224,
            threads: int = 2, pictures: int = 8) -> dict[str, float]:
  """Images per CPU-second of this process: JPEG to crop, text to tokens, batches of them.

  The ways differ in the pixels that they make of the same boxes of the same images; how much, from
  those of Pillow alone, is said as a mean over pixels, of 255.

  Args:
    seconds: measured for each way and size.
    sizes: (width, height) of the JPEGs, which are made here.
    crop: pixels a side of the random-resized crop.
    threads: of the pipeline.
    pictures: JPEGs of each size.

  Returns:
    Numbers by what they are.
  """
  numbers = {}
  for width, height in sizes:
    source = Jpegs(width, height, pictures)
    pillow = Examples(source, PillowViews(crop))
    usual, exact, fast = (Examples(source, views(crop, **options)) for options in (
        {}, {"shrink": False}, {"resize": "fast"}))
    ways = {
        "pipeline": lambda made: pipeline(usual, made, threads),
        "plain loop": lambda made: plain(usual, made),
        "all Pillow": lambda made: plain(pillow, made),
        "pipeline, shrink=False": lambda made: pipeline(exact, made, threads),
        'pipeline, resize="fast"': lambda made: pipeline(fast, made, threads)}
    rates = rate_each(ways, seconds)
    reference = [pillow[i]["image"].astype(np.int16) for i in range(2 * pictures)]
    size = f"{width}x{height}"
    for name, rate in rates.items():
      numbers[f"{size} {name}, images per CPU-second"] = rate
    numbers[f"{size} Grain's overhead over the plain loop, %"] = (
        100 * (rates["plain loop"] / rates["pipeline"] - 1))
    for name, examples in (("pipeline", usual), ("shrink=False", exact), ('resize="fast"', fast)):
      numbers[f"{size} {name}, pixels differ from Pillow's by"] = float(np.mean([
          np.abs(examples[i]["image"] - image).mean() for i, image in enumerate(reference)]))
  return numbers


def rate_each(ways: dict[str, Callable], seconds: float) -> dict[str, float]:
  """Images per CPU-second of each way, measured in turns.

  Args:
    ways: each takes a list, to which one element is added for every image made, and gives an
      iterator of batches.
    seconds: for each.
  """
  images, cpu = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
  for _ in range(_ROUNDS):
    for name, way in ways.items():
      made: list = []
      begun, end = time.process_time(), time.monotonic() + seconds / _ROUNDS
      stream = way(made)
      while time.monotonic() < end:
        next(stream)
      stream.close()
      # What was begun ahead is still being made, and its time is counted: so are its images.
      _wait_until_idle()
      images[name] += len(made)
      cpu[name] += time.process_time() - begun
  return {name: images[name] / cpu[name] for name in ways}


def _wait_until_idle():
  """Returns when no thread of this process is at work."""
  quiet = 0
  while quiet < 3:
    before = time.process_time()
    time.sleep(0.05)
    quiet = quiet + 1 if time.process_time() - before < 0.002 else 0


def pipeline(examples: Examples, made: list, threads: int, batch_size: int = _BATCH) -> Iterator:
  """Batches as training reads them, each image noted in `made`."""
  counted = Examples(examples.source, _Counted(examples.views, made), seed=examples.seed)
  return batches(counted, batch_size=batch_size, threads=threads)


def plain(examples: Examples, made: list, batch_size: int = _BATCH) -> Iterator:
  """The same by a loop, one example after the other."""
  counted = Examples(examples.source, _Counted(examples.views, made), seed=examples.seed)
  position = 0
  while True:
    rows = [counted[position + i] for i in range(batch_size)]
    yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    position += batch_size


def start_seconds(source: Source, make: Callable, step: int = 10_000_000) -> float:
  """Until the first batch of a run that goes on at a step."""
  begun = time.perf_counter()
  stream = batches(Examples(source, make), batch_size=_BATCH, start=step, threads=0)
  next(stream)
  seconds = time.perf_counter() - begun
  stream.close()  # type: ignore[attr-defined]  # A generator.
  return seconds


def memory_growth(stream: Iterator, warm: int, steps: int) -> float:
  """Bytes by which this process grows over `steps` batches, after `warm` of them."""
  for _ in range(warm):
    next(stream)
  before = _resident()
  for _ in range(steps):
    next(stream)
  return _resident() - before


def _resident():
  """Bytes of memory that this process has now; where Linux does not tell, the most it ever had."""
  try:
    with open("/proc/self/statm", encoding="ascii") as f:
      return int(f.read().split()[1]) * resource.getpagesize()
  except OSError:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Jpegs:
  """A source of a few JPEGs of one size: clouds of every scale, a little noise, quality 90."""

  def __init__(self, width: int, height: int, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    self.images = [simplejpeg.encode_jpeg(_scene(height, width, rng), 90) for _ in range(count)]

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {"image": self.images[i], "text": f"a photo of {i} clouds over a green field"}


def _scene(height, width, rng):
  """uint8 [H, W, 3]; the amplitude falls with the frequency, as in photographs."""
  scene = rng.normal(size=(height, width, 1)).repeat(3, axis=2) * 0.1
  for octave in range(1, 8):
    coarse = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32) / 2**octave
    scene += np.stack([np.asarray(Image.fromarray(channel).resize(
        (width, height), Image.Resampling.BICUBIC)) for channel in coarse.transpose(2, 0, 1)], -1)
  return (120 + 55 * (scene - scene.mean()) / scene.std()).clip(0, 255).astype(np.uint8)


def views(crop: int, **options: Any) -> Views:
  """A random-resized crop and tokens."""
  return Views({"image": ImageView(RandomResizedCrop(crop, **options))}, SentencePiece())


class PillowViews:
  """The same, each step of it done by Pillow."""

  def __init__(self, crop: int):
    self.crop, self.tokenizer = RandomResizedCrop(crop), SentencePiece()
    self.outputs = ("image", "tokens")

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record -> its image and tokens."""
    def cropped(picture, rng):
      # The same box of the same numbers; the rest of `picture` has not been decoded.
      box = self.crop.box(picture.height, picture.width, rng)
      image = Image.open(io.BytesIO(record["image"])).convert("RGB").crop(box)
      return np.asarray(image.resize(self.crop.size[::-1], Image.Resampling.BICUBIC))

    return Views({"image": ImageView(cropped)}, self.tokenizer)(record, rng)


class _Counted:
  """Views that note each example made."""

  def __init__(self, views: Any, made: list[None]):
    self.views, self.made, self.outputs = views, made, views.outputs

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    example = self.views(record, rng)
    self.made.append(None)
    return example
