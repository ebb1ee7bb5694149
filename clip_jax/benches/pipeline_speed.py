"""Benchmarks the input pipeline against a plain loop and against Pillow."""

from collections.abc import Callable, Iterator
import resource
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
import simplejpeg

from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.decode import open_image
from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.interfaces import Source

SIZES = ((400, 300), (640, 480), (1600, 1200))  # (width, height)
_BATCH = 16
_ROUNDS = 3  # Alternate the variants, so that drifts in machine speed affect all of them.


def compare(
  seconds: float = 3.0,
  sizes: tuple[tuple[int, int], ...] = SIZES,
  *,
  crop: int = 224,
  threads: int = 2,
  pictures: int = 8,
) -> dict[str, float]:
  """Measures images per CPU-second: decode and crop a JPEG, tokenize its text, batch the results.

  All variants crop boxes of the same distribution from the same images but resize them differently.
  Pixels are compared with Pillow's: the mean absolute difference, of 255. The pipeline's rate is
  given as a fraction of that of the fastest loop with Pillow that gives the same pixels: it calls
  no code of this package, except that it draws boxes and tokenizes in the same way.

  Args:
    seconds: measuring time per variant and size.
    sizes: (width, height) of the generated JPEGs.
    crop: side of the random-resized crop in pixels.
    threads: prefetching threads of the pipeline.
    pictures: number of JPEGs per size.

  Returns:
    Measured numbers by name.
  """
  numbers = {}
  for width, height in sizes:
    source = Jpegs(width, height, pictures)
    pillow = Examples(source, PillowViews(crop))
    usual, exact, fast = (
      Examples(source, views(crop, **options))
      for options in ({}, {"jpeg_draft": False}, {"interpolation": "fast"})
    )
    variants = {
      "pipeline": lambda counter: pipeline(usual, counter, threads),
      "plain loop": lambda counter: plain_loop(usual, counter),
      "Pillow only": lambda counter: plain_loop(pillow, counter),
      "fastest Pillow loop": lambda counter: pillow_loop(source, crop, counter),
      "pipeline, jpeg_draft=False": lambda counter: pipeline(exact, counter, threads),
      'pipeline, interpolation="fast"': lambda counter: pipeline(fast, counter, threads),
    }
    rates = measure_rates(variants, seconds)
    reference = [pillow[i]["image"].astype(np.int16) for i in range(2 * pictures)]
    size = f"{width}x{height}"
    for name, rate in rates.items():
      numbers[f"{size} {name}, images per CPU-second"] = rate
    numbers[f"{size} pipeline as a fraction of the fastest Pillow loop"] = (
      rates["pipeline"] / rates["fastest Pillow loop"]
    )
    numbers[f"{size} Grain's overhead over the plain loop, %"] = 100 * (
      rates["plain loop"] / rates["pipeline"] - 1
    )
    for name, examples in (
      ("pipeline", usual),
      ("jpeg_draft=False", exact),
      ('interpolation="fast"', fast),
    ):
      numbers[f"{size} {name}, mean pixel difference from Pillow, of 255"] = float(
        np.mean([np.abs(examples[i]["image"] - image).mean() for i, image in enumerate(reference)])
      )
  return numbers


def measure_rates(variants: dict[str, Callable], seconds: float) -> dict[str, float]:
  """Measures images per CPU-second of several variants, in alternating rounds.

  Args:
    variants: by name; each takes a list, appends one element per image to it, and returns an
      iterator of batches.
    seconds: measuring time per variant.
  """
  images, cpu = dict.fromkeys(variants, 0), dict.fromkeys(variants, 0.0)
  for _ in range(_ROUNDS):
    for name, variant in variants.items():
      counter: list = []
      start, end = time.process_time(), time.monotonic() + seconds / _ROUNDS
      stream = variant(counter)
      while time.monotonic() < end:
        next(stream)
      stream.close()
      # Prefetched images are still being made. Wait, so that both they and their time are counted.
      _wait_until_idle()
      images[name] += len(counter)
      cpu[name] += time.process_time() - start
  return {name: images[name] / cpu[name] for name in variants}


def _wait_until_idle():
  """Waits until no thread of this process is using the CPU."""
  quiet = 0
  while quiet < 3:
    before = time.process_time()
    time.sleep(0.05)
    quiet = quiet + 1 if time.process_time() - before < 0.002 else 0


def pipeline(examples: Examples, counter: list, threads: int, batch_size: int = _BATCH) -> Iterator:
  """Returns an iterator over the pipeline's batches; appends to `counter` for each image."""
  counted = Examples(examples.source, _CountingViews(examples.views, counter), seed=examples.seed)
  return batches(counted, batch_size=batch_size, threads=threads)


def plain_loop(examples: Examples, counter: list, batch_size: int = _BATCH) -> Iterator:
  """Yields batches of the same examples in their unsorted order, made one at a time in a loop."""
  counted = Examples(examples.source, _CountingViews(examples.views, counter), seed=examples.seed)
  position = 0
  while True:
    rows = [counted[position + i] for i in range(batch_size)]
    yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    position += batch_size


def pillow_loop(
  source: Source, crop: int, counter: list, batch_size: int = _BATCH
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches that a plain loop makes with Pillow alone, as fast as we know how.

  It gives the pixels of the pipeline: it lets the JPEG decoder reduce the size, and crops before it
  resizes, so that the filter sees no pixels outside the box.
  """
  cropper, tokenizer, rng = RandomResizedCrop(crop), SentencePiece(), np.random.default_rng(0)
  while True:
    images, texts = [], []
    for i in rng.integers(len(source), size=batch_size):
      record = source[int(i)]
      image = open_image(record["image"])
      images.append(pillow_crop(image, cropper.box(image.height, image.width, rng), crop))
      texts.append(tokenizer([record["text"]])[0])
      counter.append(None)
    yield {"image": np.stack(images), "tokens": np.stack(texts)}


def pillow_crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
  """Crops and resizes an opened JPEG with Pillow, uint8 [size, size, 3]."""
  left, top, right, bottom = box
  zoom = min(right - left, bottom - top) / size
  k = max(k for k in (1, 2, 4, 8) if k <= max(zoom, 1))
  image.draft("RGB", (image.width // k, image.height // k))
  x, y = left // k, top // k
  cut = image.crop((x, y, -(-right // k), -(-bottom // k)))
  inner = (left / k - x, top / k - y, right / k - x, bottom / k - y)
  return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC, inner))


def start_seconds(source: Source, make: Callable, step: int = 10_000_000) -> float:
  """Measures the seconds until the first batch of a run that resumes at `step`."""
  start = time.perf_counter()
  stream = batches(Examples(source, make), batch_size=_BATCH, start=step, threads=0)
  next(stream)
  seconds = time.perf_counter() - start
  stream.close()  # type: ignore[attr-defined]  # A generator.
  return seconds


def memory_growth(stream: Iterator, warm: int, steps: int) -> float:
  """Measures how many bytes this process grows by over `steps` batches, after `warm` batches."""
  for _ in range(warm):
    next(stream)
  before = _resident()
  for _ in range(steps):
    next(stream)
  return _resident() - before


def _resident():
  """Returns the resident memory in bytes, or its peak where /proc is not available."""
  try:
    with open("/proc/self/statm", encoding="ascii") as f:
      return int(f.read().split()[1]) * resource.getpagesize()
  except OSError:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Jpegs:
  """A source of a few synthetic JPEGs of one size: noise at all scales, quality 90."""

  def __init__(self, width: int, height: int, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    self.images = [simplejpeg.encode_jpeg(_scene(height, width, rng), 90) for _ in range(count)]

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {"image": self.images[i], "text": f"a photo of {i} clouds over a green field"}


def _scene(height, width, rng):
  """Generates uint8 [H, W, 3] with amplitudes that fall with frequency, as in photographs."""
  scene = rng.normal(size=(height, width, 1)).repeat(3, axis=2) * 0.1
  for octave in range(1, 8):
    coarse = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32) / 2**octave
    scene += np.stack(
      [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in coarse.transpose(2, 0, 1)
      ],
      -1,
    )
  return (120 + 55 * (scene - scene.mean()) / scene.std()).clip(0, 255).astype(np.uint8)


def views(crop: int, **options: Any) -> Views:
  """Returns views with one random-resized crop and tokens."""
  return Views({"image": ImageView(RandomResizedCrop(crop, **options))}, SentencePiece())


class PillowViews:
  """The same views, with every image operation done by Pillow."""

  def __init__(self, crop: int):
    self.crop, self.tokenizer = RandomResizedCrop(crop), SentencePiece()
    self.outputs = ("image", "tokens")

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One record -> {"image": uint8 [H, W, 3], "tokens": int32 [L]}."""

    def cropped(picture, rng):
      # Only the header of `picture` has been read, so Pillow does all of the decoding.
      box = self.crop.box(picture.height, picture.width, rng)
      image = open_image(record["image"]).convert("RGB").crop(box)
      return np.asarray(image.resize(self.crop.size[::-1], Image.Resampling.BICUBIC))

    return Views({"image": ImageView(cropped)}, self.tokenizer)(record, rng)


class _CountingViews:
  """Wraps views and appends to `counter` for each example."""

  def __init__(self, views: Any, counter: list[None]):
    self.views, self.counter, self.outputs = views, counter, views.outputs

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    example = self.views(record, rng)
    self.counter.append(None)
    return example
