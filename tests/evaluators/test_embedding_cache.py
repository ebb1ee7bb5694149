"""The embedding cache: each image is embedded once, for any batch size, devices and evaluators."""

import io
import pickle

import jax
import numpy as np
from PIL import Image
import pytest

from clip_jax.cli.progress import Progress
from clip_jax.data.crops import Resize
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.evaluators import embedding_cache
from clip_jax.evaluators.embedding_cache import EmbeddingCache, preprocessing
from clip_jax.evaluators.results import Context, Evaluator, Result, evaluate_all, metrics
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.inference.embedder import Embedder
from clip_jax.parallel.mesh import make_mesh
from measuring import measure
from tiny import SIZE, learner, text_tower

MODEL = learner(text=text_tower(vocab_size=4096)).model


class Records(list):
  """A source of drawings."""


def drawings(n):
  source = OpenClipart("test")
  return Records(source[i] for i in range(n))


class Counting(Embedder):
  """An embedder that counts the images and texts it embeds."""

  def __init__(self, devices=1, batch_size=8):
    super().__init__(
      MODEL,
      Resize(SIZE),
      SentencePiece(context_length=8),
      batch_size=batch_size,
      threads=2,
      mesh=make_mesh(devices=jax.devices()[:devices]),
    )
    self.images, self.texts = 0, 0

  def encode_share(self, share):
    self.images += len(share)
    return super().encode_share(share)

  def encode_text(self, texts):
    self.texts += len(texts)
    return super().encode_text(texts)


@pytest.mark.parametrize("devices, batch_size", [(1, 1), (1, 8), (8, 8), (8, 64)])
def test_each_image_is_embedded_once_for_any_batch_size_and_devices(devices, batch_size):
  source, n = drawings(21), 21
  embedder = Counting(devices, batch_size)
  images = EmbeddingCache(embedder).images(source, np.arange(n), fields=("key",))
  assert embedder.images == n
  assert [r["key"] for r in images.records] == [r["key"] for r in source]
  pixels = np.stack([Resize(SIZE)(r["image"]) for r in source])
  np.testing.assert_allclose(images.z, np.asarray(MODEL.encode_image(pixels)), atol=1e-5)
  np.testing.assert_allclose(images.features, np.asarray(MODEL.image_features(pixels)), atol=1e-4)


def test_results_are_the_same_on_one_device_and_on_eight():
  source = drawings(29)
  evaluators = {
    "retrieval": Retrieval(source),
    "zero_shot": ZeroShot(source, OpenClipart.classes, limit=27),
  }
  one, eight = (metrics(evaluate_all(evaluators, Context(Counting(n, 16)))) for n in (1, 8))
  assert one == eight
  assert one["retrieval/examples"] == 29 and one["zero_shot/examples"] == 27


def test_evaluators_share_cached_embeddings():
  embedder, source, again = Counting(), drawings(12), drawings(10)  # Equal bytes, other objects.
  context = Context(embedder)
  retrieval = Retrieval(source)
  evaluate_all(
    {"a": retrieval, "b": Retrieval(again), "c": ZeroShot(again, OpenClipart.classes, limit=10)},
    context,
  )
  assert embedder.images == context.embedder.embedded == 12
  assert embedder.texts == len({r["text"] for r in source} | set(OpenClipart.classes))
  retrieval.figure(context)
  assert embedder.images == 12
  evaluate_all({"d": Retrieval(source, resize="crop")}, context)  # The pixels differ.
  assert embedder.images == 24
  # The same as the model's own preprocessing.
  evaluate_all({"e": Retrieval(source, resize="squash")}, context)
  assert embedder.images == 24 and list(context.results) == ["a", "b", "c", "d", "e"]


def test_a_duplicate_image_is_embedded_once():
  embedder, source = Counting(), drawings(6)
  source += source[:5]
  images = EmbeddingCache(embedder).images(source, np.arange(11))
  assert embedder.images == 6
  np.testing.assert_array_equal(images.z[6:], images.z[:5])


@pytest.mark.parametrize(
  "resize, mode, central",
  [("squash", "squash", 1), ("crop", "crop", 1), ("central_crop", "crop", 0.875)],
)
def test_resize_modes_match_their_descriptions(resize, mode, central):
  pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
  prepare, description = preprocessing(Counting(), resize)
  np.testing.assert_array_equal(
    prepare(pixels), Resize(SIZE, resize_mode=mode, center_crop=central)(pixels)
  )
  assert description == f"{mode} to {SIZE} x {SIZE}" + (", central 0.875" if central < 1 else "")


def test_central_crop_resizes_the_shorter_side_and_crops_the_centre():
  # Other code does it in two steps: resize the shorter side to 16 / 0.875 = 18.3 pixels, then crop
  # the central 16. The two agree on a smooth picture.
  y, x = np.mgrid[:120, :160] / 160
  pixels = np.stack([255 * x, 255 * y, 255 * (x + y) / 2], -1).astype(np.uint8)
  scale = SIZE / 0.875 / 120
  large = Image.fromarray(pixels).resize((round(160 * scale), round(120 * scale)), Image.BICUBIC)
  left, top = (large.width - SIZE) / 2, (large.height - SIZE) / 2
  expected = np.asarray(
    large.crop((round(left), round(top), round(left) + SIZE, round(top) + SIZE)), float
  )
  got = preprocessing(Counting(), "central_crop")[0](pixels)
  assert np.abs(got - expected).mean() < 4


def test_custom_preprocessing_is_described_by_its_type():
  embedder = Counting()
  embedder.preprocess = lambda image: image[:SIZE, :SIZE]
  assert preprocessing(embedder, None)[1] == "the model's own, function"


def test_unreadable_images_count_as_wrong_and_are_reported():
  source, lines = drawings(200), []
  source[50] = {**source[50], "image": b"no image"}
  context = Context(EmbeddingCache(Counting(), lines.append))
  result = ZeroShot(source, OpenClipart.classes, limit=200).evaluate(context)
  assert result.metrics["examples"] == 200
  assert result.detail["unreadable"] == 1 and result.detail["unreadable_records"] == [50]
  assert "1 of 200 images cannot be read and count as wrong: records 50 of the source." in lines


def test_too_many_unreadable_images_stop_the_evaluation():
  source = drawings(30)
  for i in (3, 4, 9):
    source[i] = {**source[i], "image": b"no image"}
  with pytest.raises(UserError, match="2 of the first 8 images .*records 3, 4 .* 1% of the 30 "):
    measure(Retrieval(source), Counting())


def test_an_unreadable_record_is_an_error_with_its_index():
  class Torn(Records):
    def __getitem__(self, i):
      if i == 2:
        raise OSError("hash mismatch")
      return super().__getitem__(i)

  with pytest.raises(
    UserError,
    match=r"Record 2 cannot be read: OSError\('hash mismatch'\). Check "
    "the source, Torn",
  ):
    measure(Retrieval(Torn(drawings(4))), Counting())


def test_a_source_without_readable_images_is_an_error(monkeypatch):
  monkeypatch.setattr(embedding_cache, "UNREADABLE_SHARE", 1.0)
  with pytest.raises(UserError, match="None of the 2 images can be read"):
    measure(Retrieval([{"image": b"no", "text": "a"}, {"image": b"yes", "text": "b"}]), Counting())


def test_progress_is_reported(monkeypatch):
  monkeypatch.setattr(
    embedding_cache, "Progress", lambda *args, last: Progress(*args, every=0, last=last)
  )
  lines = []
  shared = EmbeddingCache(Counting(), lines.append)
  measure(Retrieval(drawings(20)), shared)
  assert [line.split()[0] for line in lines] == ["8/20", "16/20", "20/20", "18/18"]
  assert "images/s  time left" in lines[0] and "texts/s" in lines[-1]
  assert "20 images embedded in " in shared.speed() and "images/s" in shared.speed()


def test_hosts_combine_the_records_that_each_has_read(monkeypatch):
  # Simulates host 0 of two hosts in one process: `_gathered` returns what both hosts have read.
  source, at = drawings(9), np.arange(9)
  halves = [np.array_split(at[k : k + 8], 2) for k in range(0, 9, 8)]
  prepare = Resize(SIZE)
  read = [
    [
      [embedding_cache._read_one(source, int(p), ("key",), prepare, {}) for p in part]
      for part in batch
    ]
    for batch in halves
  ]
  told = iter(
    [
      [
        pickle.loads(
          pickle.dumps(
            [embedding_cache.dataclasses.replace(r, pixels=np.shape(r.pixels)) for r in part]
          )
        )
        for part in batch
      ]
      for batch in read
    ]
  )
  monkeypatch.setattr(embedding_cache, "_gathered", lambda mine: next(told))
  monkeypatch.setattr(jax, "process_count", lambda: 2)

  class First:
    """The embedder of host 0, which appends the rows that host 1 would send."""

    preprocess, batch_size, threads = prepare, 8, 1

    def encode_share(self, share):
      batch = read[self.asked]
      self.asked += 1
      most = max(map(len, batch))
      rows = [*share]
      assert len(rows) == most
      rows += [r.pixels for r in batch[1]] + [np.zeros_like(share[0])] * (most - len(batch[1]))
      rows = np.stack(rows).astype(np.float32).reshape(2 * most, -1)
      return rows, rows[:, :5]

    asked = 0

  images = EmbeddingCache(First()).images(source, at, fields=("key",))
  assert [r["key"] for r in images.records] == [r["key"] for r in source]
  for row, record in zip(images.features, source):
    np.testing.assert_array_equal(row, prepare(record["image"]).ravel())


def test_a_minimal_evaluator_and_a_minimal_embedder_suffice():
  class Plain:
    def encode_image(self, images):
      return np.ones((len(images), 2))

    def encode_text(self, texts):
      return np.ones((len(texts), 2))

    extra = "x"

  class Count(Evaluator):
    def evaluate(self, context):
      embedder = context.embedder
      assert embedder.extra == "x" and context.metrics == {"before/x": 1.0}
      n = len(embedder.encode_image([1, 2])) + len(embedder.encode_text(["a"]))
      return Result({"n": float(n)})

  lines, context = [], Context(Plain(), {"before": Result({"x": 1.0})})
  assert evaluate_all({"count": Count()}, context, lines.append) == {
    "count": Result({"n": 3.0}, {})
  }
  assert lines == ["count"] and context.metrics == {"before/x": 1.0, "count/n": 3.0}
  assert Count().figure(context) is None


def test_encoded_images_and_pixel_arrays_have_equal_embeddings():
  pixels = np.full((20, 20, 3), 90, np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "PNG")
  images = EmbeddingCache(Counting()).images(
    [{"image": pixels}, {"image": out.getvalue()}], np.arange(2)
  )
  np.testing.assert_allclose(images.z[0], images.z[1], atol=1e-6)
