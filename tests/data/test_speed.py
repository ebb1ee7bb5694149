"""The comparison of pipelines: the same work, counted whole; and what it may cost at most."""

import itertools
import mmap
import time

import numpy as np
import pytest

from clip_jax.data import Examples, Quality, Subset, batches, speed, write_scores
from clip_jax.data.sources.shapes import Shapes

SOURCE = speed.Jpegs(80, 60, 3)


@pytest.fixture(scope="module")
def numbers():
  return speed.compare(0.3, sizes=((80, 60), (200, 150)), crop=32, pictures=3)


def test_every_way_is_measured_at_every_size(numbers):
  ways = ("pipeline", "plain loop", "all Pillow", "pipeline, shrink=False",
          'pipeline, resize="fast"')
  for size in ("80x60", "200x150"):
    for way in ways:
      assert numbers[f"{size} {way}, images per CPU-second"] > 10
    assert -90 < numbers[f"{size} Grain's overhead over the plain loop, %"] < 500


def test_without_shrinking_the_pixels_are_pillows(numbers):
  for size in ("80x60", "200x150"):
    assert numbers[f"{size} shrink=False, pixels differ from Pillow's by"] == 0
    assert 0 < numbers[f'{size} resize="fast", pixels differ from Pillow\'s by'] < 4
  # Less than twice the crop, nothing is shrunk.
  assert numbers["80x60 pipeline, pixels differ from Pillow's by"] == 0
  assert 0 < numbers["200x150 pipeline, pixels differ from Pillow's by"] < 2


def test_pillow_makes_the_same_examples():
  ours = Examples(SOURCE, speed.views(32, shrink=False))
  pillows = Examples(SOURCE, speed.PillowViews(32))
  for position in range(6):
    a, b = ours[position], pillows[position]
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_a_plain_loop_makes_the_batches_of_the_pipeline():
  examples = Examples(SOURCE, speed.views(16))
  made = {"pipeline": [], "plain": []}
  for a, b in itertools.islice(zip(speed.pipeline(examples, made["pipeline"], 2),
                                   speed.plain(examples, made["plain"])), 3):
    assert a.keys() == b.keys()
    order = np.argsort(b["index"], kind="stable")  # As they lie in the files.
    for name in a:
      np.testing.assert_array_equal(a[name], b[name][order])
  assert len(made["plain"]) == 3 * 16 <= len(made["pipeline"])


def test_a_rate_counts_what_was_made():
  def way(seconds):
    def stream(made):
      while True:
        end = time.process_time() + seconds
        while time.process_time() < end:
          pass
        made.append(None)
        yield
    return stream

  rates = speed.rate_each({"slow": way(0.02), "quick": way(0.01)}, 0.6)
  assert 35 < rates["slow"] < 51 and 70 < rates["quick"] < 101


def test_a_run_goes_on_at_step_ten_million_in_under_a_second(tmp_path):
  source = Shapes(10**9)
  tiny = lambda record, rng: {"label": np.int32(record["label"])}
  assert speed.start_seconds(source, tiny) < 1
  assert speed.start_seconds(Subset(source, "340M"), tiny) < 1
  scored = Shapes(1000)
  write_scores(tmp_path / "s.npz", np.arange(1000.0), scored)
  chosen = Quality(scored, str(tmp_path / "s.npz"), keep="top 40%")
  assert speed.start_seconds(Subset(chosen, "50%"), tiny) < 1


def test_memory_is_flat_over_an_epoch_of_a_million_records():
  class Counters:
    def __len__(self):
      return 10**6

    def __getitem__(self, i):
      return {"i": i}

  image = np.zeros((8, 8, 3), np.uint8)
  examples = Examples(Counters(), lambda record, rng: {"image": image + np.uint8(rng.integers(9))})
  stream = batches(examples, batch_size=500, threads=2)
  growth = speed.memory_growth(stream, warm=20, steps=100)   # A twentieth of it.
  stream.close()
  assert growth < 5e6  # The batches of these steps alone would be 10 MB, and their records more.


def test_memory_that_grows_is_seen():
  def grown():
    memory = mmap.mmap(-1, 2**20)
    memory.write(bytes(2**20))
    return memory

  kept = []
  growing = (kept.append(grown()) for _ in itertools.count())
  assert 25 < speed.memory_growth(growing, warm=2, steps=30) / 2**20 < 40
