"""Retrieval, compared with results computed by hand and with plain loops."""

import io

import numpy as np
from PIL import Image
import pytest

from clip_jax.data.decode import decode
from clip_jax.errors import UserError
from clip_jax.evaluators.results import Context
from clip_jax.evaluators.retrieval import Retrieval, contact_sheet, ranks
from measuring import measure


class Table:
  """An embedder that looks up images by the red value of their first pixel, and texts by name."""

  def __init__(self, z_image, z_text):
    self.z_image, self.z_text = np.asarray(z_image, np.float32), z_text
    self.calls = []

  def encode_image(self, images):
    return self.z_image[[int(image[0, 0, 0]) for image in images]]

  def encode_text(self, texts):
    self.calls.append(list(texts))
    return np.array([self.z_text[text] for text in texts], np.float32)


def image(i):
  return np.full((6, 9, 3), i, np.uint8)


def records(*texts):
  return [{"image": image(i), "text": text} for i, text in enumerate(texts)]


def unit(rng, *shape):
  z = rng.normal(size=shape)
  return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def ranks_by_loops(z_image, z_text, owner):
  score = lambda i, j: sum(float(a) * float(b) for a, b in zip(z_image[i], z_text[j]))
  texts, images = range(len(z_text)), range(len(z_image))
  image_rank = []
  for i in images:
    best = max(score(i, j) for j in texts if owner[j] == i)
    image_rank.append(sum(score(i, j) >= best - 1e-6 for j in texts if owner[j] != i))
  text_rank = [
    sum(score(i, j) >= score(owner[j], j) - 1e-6 for i in images if i != owner[j]) for j in texts
  ]
  return image_rank, text_rank


@pytest.mark.parametrize("block", [1, 3, 7, 4096])
def test_ranks_match_loops_for_any_block_size(block):
  rng = np.random.default_rng(0)
  owner = np.concatenate([np.arange(11), rng.integers(0, 11, 12)])  # One or more texts per image.
  z_image, z_text = unit(rng, 11, 4), unit(rng, 23, 4)
  z_text[3], z_text[15], z_image[5] = z_text[0], z_text[1], z_image[6]  # Ties in both directions.
  image_rank, text_rank = ranks(z_image, z_text, owner, chunk_size=block)
  expected_image, expected_text = ranks_by_loops(z_image, z_text, owner)
  assert image_rank.tolist() == expected_image
  assert text_rank.tolist() == expected_text


def test_a_perfect_model_finds_everything():
  evaluator = Retrieval(records("a", "b", "c"))
  metrics = measure(evaluator, Table(np.eye(3), {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}))
  for direction in "image_to_text", "text_to_image":
    assert [metrics[f"{direction}_r{k}"] for k in (1, 5, 10)] == [100, 100, 100]
    assert metrics[f"{direction}_median_rank"] == 1
  assert metrics["examples"] == metrics["captions"] == 3


def test_recall_at_k_counts_the_ranks_below_k():
  n = 12
  # On a circle, text i is about i / 2 steps beyond image i, so that about i images are nearer.
  angle = np.arange(2 * n) * np.pi / 40
  z_image = np.stack([np.cos(angle), np.sin(angle)], 1)
  text_angle = angle + np.arange(2 * n) * np.pi / 40 * 0.51
  turned = {f"{i}": [np.cos(a), np.sin(a)] for i, a in enumerate(text_angle)}
  metrics = measure(Retrieval(records(*turned)), Table(z_image, turned))
  score = z_image @ np.array(list(turned.values())).T
  expected = [int(np.sum(score[:, j] > score[j, j])) for j in range(2 * n)]
  assert len(set(expected)) > 8  # The ranks vary enough to distinguish the recalls.
  for k in 1, 5, 10:
    assert metrics[f"text_to_image_r{k}"] == pytest.approx(100 * np.mean(np.array(expected) < k))


def test_an_image_needs_one_good_caption_but_each_caption_is_scored():
  z_text = {"good": [1, 0], "bad": [0, 1], "other": [0.6, 0.8]}
  metrics = measure(Retrieval(records(["bad", "good"], "other")), Table([[1, 0], [0, 1]], z_text))
  assert metrics["image_to_text_r1"] == 50  # Image 1 is nearest to "bad", a caption of image 0.
  assert metrics["text_to_image_r1"] == pytest.approx(200 / 3)
  assert metrics["captions"] == 3


def test_identical_captions_of_two_images_are_misses():
  metrics = measure(Retrieval(records("cat", "cat")), Table([[1, 0], [1, 0]], {"cat": [1, 0]}))
  assert metrics["image_to_text_r1"] == 0
  assert metrics["text_to_image_r1"] == 0
  assert metrics["text_to_image_r5"] == 100


def test_identical_captions_of_one_image_do_not_compete():
  metrics = measure(
    Retrieval(records(["cat", "cat"], "dog")), Table(np.eye(2), {"cat": [1, 0], "dog": [0, 1]})
  )
  assert metrics["image_to_text_r1"] == 100


def test_a_collapsed_model_finds_nothing():
  texts = [f"{i}" for i in range(30)]
  metrics = measure(
    Retrieval(records(*texts)), Table(np.ones((30, 1)), {text: [1] for text in texts})
  )
  assert metrics["image_to_text_r10"] == metrics["text_to_image_r10"] == 0
  assert metrics["text_to_image_median_rank"] == 30


def test_ties_are_detected_despite_rounding_in_a_large_matrix_product():
  rng = np.random.default_rng(1)
  z_image = unit(rng, 300, 192)
  z_text = np.repeat(unit(rng, 1, 192), 300, 0)
  image_rank, _ = ranks(z_image, z_text, np.arange(300), chunk_size=37)
  assert image_rank.tolist() == [299] * 300


@pytest.mark.parametrize("nan_in", ["image", "text", "both"])
def test_a_diverged_model_finds_nothing(nan_in):
  z = unit(np.random.default_rng(2), 15, 3)
  nan = np.full_like(z, np.nan)
  image_rank, text_rank = ranks(
    nan if nan_in != "text" else z, nan if nan_in != "image" else z, np.arange(15)
  )
  assert image_rank.tolist() == text_rank.tolist() == [14] * 15


def test_a_nan_embedding_outranks_every_other_candidate():
  z_text = np.eye(3, dtype=np.float32)
  z_text[2] = np.nan
  image_rank, text_rank = ranks(np.eye(3, dtype=np.float32), z_text, np.arange(3))
  assert image_rank.tolist() == [1, 1, 2]
  assert text_rank.tolist() == [0, 0, 2]


def test_equal_texts_are_embedded_once():
  embedder = Table(np.eye(3), {"a": [1, 0, 0], "b": [0, 1, 0]})
  measure(Retrieval(records("a", "b", "a")), embedder)
  assert embedder.calls == [["a", "b"]]


def test_a_limit_spreads_the_records_over_the_source():
  texts = [f"{i}" for i in range(10)]
  embedder = Table(np.eye(10), dict(zip(texts, np.eye(10))))
  assert measure(Retrieval(records(*texts), limit=4), embedder)["examples"] == 4
  assert embedder.calls == [["0", "2", "5", "7"]]
  assert measure(Retrieval(records(*texts), limit=99), embedder)["examples"] == 10


def test_embedding_in_chunks_gives_the_same_result(monkeypatch):
  rng = np.random.default_rng(3)
  texts = [f"{i}" for i in range(20)]
  embedder = Table(unit(rng, 20, 3), dict(zip(texts, unit(rng, 20, 3))))
  whole = measure(Retrieval(records(*texts)), embedder)
  monkeypatch.setattr("clip_jax.evaluators.embedding_cache.CHUNK", 7)
  embedder.calls.clear()
  assert measure(Retrieval(records(*texts), chunk_size=3), embedder) == whole
  assert [len(call) for call in embedder.calls] == [7, 7, 6]


def framed(sheet, colour):
  """Returns whether any frame on the sheet has this colour."""
  return bool((np.asarray(sheet) == colour).all(-1).sum() > 300)


GREEN, AMBER = (0x16, 0xA3, 0x4A), (0xD9, 0x77, 0x06)


def test_the_figure_frames_the_correct_image_in_green():
  texts = ["a", "b", "c"]
  sheet = Retrieval(records(*texts)).figure(Context(Table(np.eye(3), dict(zip(texts, np.eye(3))))))
  assert isinstance(sheet, Image.Image)
  assert framed(sheet, GREEN) and not framed(sheet, AMBER)


def test_the_figure_shows_missed_images():
  texts = [f"caption number {i}, with many words that have to be wrapped" for i in range(9)]
  sheet = Retrieval(records(*texts)).figure(
    Context(Table(np.ones((9, 1)), {text: [1] for text in texts}))
  )
  assert framed(sheet, AMBER) and not framed(sheet, GREEN)


def test_the_figure_of_a_diverged_model_is_drawn():
  texts = [f"{i}" for i in range(9)]
  nan = np.full((9, 2), np.nan)
  sheet = Retrieval(records(*texts)).figure(Context(Table(nan, dict(zip(texts, nan)))))
  assert framed(sheet, AMBER) and not framed(sheet, GREEN)


def test_the_figure_is_deterministic_and_decodes_images():
  encoded = []
  for i in range(20):
    buffer = io.BytesIO()
    Image.fromarray(image(i)).save(buffer, "PNG")
    encoded.append({"image": buffer.getvalue(), "text": f"{i}"})

  class Embedder:
    def encode_image(self, images):
      return np.eye(20, dtype=np.float32)

    def encode_text(self, texts):
      return np.eye(20, dtype=np.float32)[[int(text) for text in texts]]

  first, second = (Retrieval(encoded).figure(Context(Embedder())) for _ in range(2))
  assert first.tobytes() == second.tobytes()
  assert first.height > Retrieval(encoded).figure(Context(Embedder()), rows=2).height


@pytest.mark.parametrize("text", ["", "w" * 400, "many words " * 60, "日本語 ünïcode"])
def test_any_caption_fits_on_the_sheet(text):
  sheet = contact_sheet([(text, 0, [image(1)] * 5, image(1))], title="title", subtitle="subtitle")
  assert sheet.size[0] < 1300


def test_an_empty_source_is_an_error():
  with pytest.raises(UserError, match="list has no records"):
    Retrieval([])


def test_a_limit_below_one_is_an_error():
  with pytest.raises(UserError, match="limit is 0; Retrieval expects an integer of at least 1"):
    Retrieval(records("a"), limit=0)


def test_the_error_for_a_missing_text_lists_the_fields():
  with pytest.raises(UserError, match="Record 0 of list.. has no 'text', only image, label"):
    measure(Retrieval([{"image": image(0), "label": 1}]), Table(np.eye(1), {}))


@pytest.mark.parametrize("text", [[], None, ["a", 3]])
def test_an_invalid_text_is_an_error(text):
  with pytest.raises(UserError, match="Record 1 has text .*; expected a caption"):
    measure(Retrieval(records("a", text)), Table(np.eye(2), {"a": [1, 0]}))


def test_every_recall_has_a_standard_error():
  detail = (
    Retrieval(records("a", "b", ["c", "d"]))
    .evaluate(
      Context(Table(np.eye(3), {"a": [1, 0, 0], "b": [0, 1, 0], "c": [1, 0, 0], "d": [0, 0, 1]}))
    )
    .detail
  )
  assert detail["standard_error"]["image_to_text_r1"] == pytest.approx(100 * (2 / 9 / 3) ** 0.5)
  assert detail["standard_error"]["text_to_image_r1"] == pytest.approx(100 * (3 / 16 / 4) ** 0.5)


def test_an_unreadable_image_counts_as_a_miss_and_can_be_drawn():
  class Prepares(Table):
    """Decodes images, like a real embedder."""

    def preprocess(self, image):
      return decode(image)

  class Model:
    image = None

  embedder = Prepares(np.eye(200), {f"{i}": np.eye(200)[i] for i in range(200)})
  embedder.model = Model
  source = records(*(f"{i}" for i in range(200)))
  source[7]["image"] = b"no image"
  evaluator = Retrieval(source)
  result = evaluator.evaluate(Context(embedder))
  assert result.detail["unreadable"] == 1 and result.detail["unreadable_records"] == [7]
  assert result.metrics["image_to_text_r10"] == result.metrics["text_to_image_r10"] == 99.5
  assert evaluator.figure(Context(embedder), rows=200).width
