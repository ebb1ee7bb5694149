"""Tests of ranking images by texts and images, against sorting in plain Python."""

import io

import numpy as np
from PIL import Image
import pytest

from clip_jax.inference.picture_search import PictureSearch, Query

RNG = np.random.default_rng(0)
WORDS = ("cat", "dog", "car")


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Embedder:
  """Fixed vectors for three words, and for an image by its red channel."""

  scale = 20.0

  def __init__(self):
    self.words = dict(zip(WORDS, unit(RNG.normal(size=(3, 8))).astype(np.float32)))
    self.calls = 0

  def encode_text(self, texts):
    self.calls += 1
    return np.stack([self.words[text] for text in texts])

  def encode_image(self, images):
    self.calls += 1
    reds = [Image.open(io.BytesIO(image)).getpixel((0, 0))[0] for image in images]
    return unit(np.stack([np.arange(8, dtype=np.float32) + red for red in reds]))


class Index:
  z = unit(RNG.normal(size=(50, 8))).astype(np.float32)


def png(red):
  content = io.BytesIO()
  Image.new("RGB", (2, 2), (red, 0, 0)).save(content, "PNG")
  return content.getvalue()


def ranked(values):
  return sorted(range(len(values)), key=lambda k: -values[k])


@pytest.fixture
def embedder():
  return Embedder()


@pytest.fixture
def search(embedder):
  return PictureSearch(embedder, Index)


def test_a_text_ranks_by_its_cosine(search, embedder):
  made = search(Query(text="cat"))
  cosines = [float(np.dot(z, embedder.words["cat"])) for z in Index.z]
  assert made.order.tolist() == ranked(cosines) and list(made.scores) == ["text"]
  np.testing.assert_allclose(made.scores["text"], cosines, rtol=1e-6, atol=1e-7)


def test_an_image_of_the_index_is_nearest_to_itself(search):
  made = search(Query(like=7))
  assert made.order[0] == 7 and made.scores["image"][7] == pytest.approx(1)


def test_an_uploaded_image_takes_precedence(search, embedder):
  made = search(Query(like=7, image=png(3)))
  wanted = [float(np.dot(z, embedder.encode_image([png(3)])[0])) for z in Index.z]
  assert made.order.tolist() == ranked(wanted)


def test_a_text_and_an_image_count_equally(search):
  made = search(Query(text="dog", like=3))
  text, image = made.scores["text"].astype(float), made.scores["image"].astype(float)
  assert made.order.tolist() == ranked(text / text.std() + image / image.std())


def test_the_probability_is_the_softmax_over_the_labels(search, embedder):
  made = search(Query(text="cat", labels=("dog", "car")))
  for k in (0, 20, 49):
    logits = [embedder.scale * float(np.dot(Index.z[k], embedder.words[w])) for w in WORDS]
    wanted = np.exp(logits[0]) / sum(np.exp(logits))
    assert made.probability[k] == pytest.approx(wanted, rel=1e-5)
  assert search(Query(text="cat")).probability is None


def test_without_a_query_the_order_is_random_by_seed(search):
  orders = [search(Query(seed=seed)).order.tolist() for seed in (1, 1, 2)]
  assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(50))


def test_the_next_page_of_a_search_computes_nothing(search, embedder):
  for query in (Query(text="car"), Query(image=png(1))):
    before = embedder.calls
    assert search(query) is search(query) and embedder.calls == before + 1
  for seed in range(40):
    search(Query(seed=seed))
  before = embedder.calls
  search(Query(text="car"))
  assert embedder.calls == before + 1  # Forgotten: only the last few are kept.


def test_an_unknown_image_of_the_index_is_an_error(search):
  with pytest.raises(IndexError):
    search(Query(like=50))
