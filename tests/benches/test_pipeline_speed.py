"""The pipeline benchmarks compare equal work; start-up time and memory stay bounded."""

import io
import itertools
import mmap
import time

import numpy as np
from PIL import Image
import pytest

from clip_jax.benches import pipeline_speed
from clip_jax.data import Examples, ScoreFilter, Subset, batches, write_scores
from clip_jax.data.crops import RandomResizedCrop, _resized
from clip_jax.data.decode import Picture
from clip_jax.data.sources.shapes import Shapes

SOURCE = pipeline_speed.Jpegs(80, 60, 3)


@pytest.fixture(scope="module")
def numbers():
  return pipeline_speed.compare(0.3, sizes=((80, 60), (200, 150)), crop=32, pictures=3)


def test_every_variant_is_measured_at_every_size(numbers):
  ways = (
    "pipeline",
    "plain loop",
    "Pillow only",
    "fastest Pillow loop",
    "pipeline, jpeg_draft=False",
    'pipeline, interpolation="fast"',
  )
  for size in ("80x60", "200x150"):
    for way in ways:
      assert numbers[f"{size} {way}, images per CPU-second"] > 10
    rates = [numbers[f"{size} {way}, images per CPU-second"] for way in (ways[0], ways[3])]
    fraction = numbers[f"{size} pipeline as a fraction of the fastest Pillow loop"]
    assert fraction == pytest.approx(rates[0] / rates[1])
    assert -90 < numbers[f"{size} Grain's overhead over the plain loop, %"] < 500


def test_pixels_match_pillow_without_shrink(numbers):
  for size in ("80x60", "200x150"):
    assert numbers[f"{size} jpeg_draft=False, mean pixel difference from Pillow, of 255"] == 0
    assert (
      0 < numbers[f'{size} interpolation="fast", mean pixel difference from Pillow, of 255'] < 4
    )
  # Images below twice the output size are decoded in full.
  assert numbers["80x60 pipeline, mean pixel difference from Pillow, of 255"] == 0
  assert 0 < numbers["200x150 pipeline, mean pixel difference from Pillow, of 255"] < 2


def test_pillow_makes_the_same_examples():
  ours = Examples(SOURCE, pipeline_speed.views(32, jpeg_draft=False))
  pillows = Examples(SOURCE, pipeline_speed.PillowViews(32))
  for position in range(6):
    a, b = ours[position], pillows[position]
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_the_fastest_pillow_loop_gives_the_pixels_and_tokens_of_the_pipeline():
  source, rng = pipeline_speed.Jpegs(200, 150, 3), np.random.default_rng(0)
  crop = RandomResizedCrop(32)
  for k in range(12):
    encoded, box = source.images[k % 3], crop.box(150, 200, rng)
    if k == 0:
      box = (37, 50, 200, 150)  # To the last pixel.
    ours = _resized(Picture(encoded), box, (32, 32), jpeg_draft=True, inside=True)
    image = Image.open(io.BytesIO(encoded))
    np.testing.assert_array_equal(pipeline_speed.pillow_crop(image, box, 32), ours)
  counter = []
  batch = next(pipeline_speed.pillow_loop(source, 32, counter))
  assert batch["image"].shape == (16, 32, 32, 3) and len(counter) == 16
  assert batch["tokens"].dtype == np.int32 and batch["tokens"].shape[0] == 16


def test_the_plain_loop_makes_the_same_batches_as_the_pipeline():
  examples = Examples(SOURCE, pipeline_speed.views(16))
  counter = {"pipeline": [], "plain": []}
  for a, b in itertools.islice(
    zip(
      pipeline_speed.pipeline(examples, counter["pipeline"], 2),
      pipeline_speed.plain_loop(examples, counter["plain"]),
    ),
    3,
  ):
    assert a.keys() == b.keys()
    order = np.argsort(b["index"], kind="stable")  # In the order of the files.
    for name in a:
      np.testing.assert_array_equal(a[name], b[name][order])
  assert len(counter["plain"]) == 3 * 16 <= len(counter["pipeline"])


def test_rates_are_images_per_cpu_second():
  def way(seconds):
    def stream(counter):
      while True:
        end = time.process_time() + seconds
        while time.process_time() < end:
          pass
        counter.append(None)
        yield

    return stream

  rates = pipeline_speed.measure_rates({"slow": way(0.02), "quick": way(0.01)}, 0.6)
  assert 35 < rates["slow"] < 51 and 70 < rates["quick"] < 101


def test_resuming_at_step_ten_million_takes_under_a_second(tmp_path):
  source = Shapes(10**9)
  tiny = lambda record, rng: {"label": np.int32(record["label"])}
  assert pipeline_speed.start_seconds(source, tiny) < 1
  assert pipeline_speed.start_seconds(Subset(source, "340M"), tiny) < 1
  scored = Shapes(1000)
  write_scores(tmp_path / "s.npz", np.arange(1000.0), scored)
  chosen = ScoreFilter(scored, str(tmp_path / "s.npz"), keep="top 40%")
  assert pipeline_speed.start_seconds(Subset(chosen, "50%"), tiny) < 1


def test_memory_stays_flat_over_many_batches_of_a_large_source():
  class Counters:
    def __len__(self):
      return 10**6

    def __getitem__(self, i):
      return {"i": i}

  image = np.zeros((8, 8, 3), np.uint8)
  examples = Examples(Counters(), lambda record, rng: {"image": image + np.uint8(rng.integers(9))})
  stream = batches(examples, batch_size=500, threads=2)
  growth = pipeline_speed.memory_growth(stream, warm=20, steps=100)  # 5% of an epoch.
  stream.close()
  assert growth < 5e6  # Keeping the batches of these steps would take 10 MB.


def test_memory_growth_is_detected():
  def grown():
    memory = mmap.mmap(-1, 2**20)
    memory.write(bytes(2**20))
    return memory

  kept = []
  growing = (kept.append(grown()) for _ in itertools.count())
  assert 25 < pipeline_speed.memory_growth(growing, warm=2, steps=30) / 2**20 < 40
