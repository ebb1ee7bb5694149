"""Retrieval of concepts, compared with plain loops and with results computed by hand."""

import itertools

import numpy as np
import pytest

from clip_jax.evaluators.concept_retrieval import (
  ConceptRetrieval,
  best_ranks,
  chance,
  hit_probability,
)
from clip_jax.evaluators.linear_baseline import LinearBaseline
from clip_jax.evaluators.results import Context

AXES = np.eye(6, dtype=np.float32)


class Table:
  """An embedder that looks up images by the value of their first pixel, and texts by name."""

  def __init__(self, z_image, z_text):
    self.z_image, self.z_text = z_image, z_text

  def encode_image(self, images):
    return self.z_image[[int(image[0, 0, 0]) for image in images]]

  def encode_text(self, texts):
    return np.stack([self.z_text[text] for text in texts])


def record(i, own, *others):
  image = np.full((4, 4, 3), i, np.uint8)
  return {"image": image, "names": own, "concept": [*own, *others]}


def test_any_image_of_a_name_and_any_name_of_an_image_is_right():
  source = [record(0, ["trash"], "bin"), record(1, ["bin"], "trash"), record(2, ["star"])]
  z_text = {"trash": AXES[0], "bin": AXES[1], "star": AXES[2]}
  # The trash can looks like a bin, and the star like nothing else.
  metrics = ConceptRetrieval(source).evaluate(Context(Table(AXES[[1, 1, 2]], z_text))).metrics
  assert metrics["image_to_text_r1"] == 100
  assert metrics["text_to_image_r1"] == pytest.approx(200 / 3)  # "trash" ties with all images.
  assert metrics["names"] == metrics["examples"] == 3
  # Both names are synonyms, each of the other's image, which is searched among two images.
  assert metrics["synonyms"] == 2
  assert metrics["synonyms_r1"] == 50  # "bin" finds the trash can; "trash" ties.
  assert metrics["substring_synonyms_r10"] == 0
  assert metrics["chance_image_to_text_r1"] == pytest.approx(100 * (2 + 2 + 1) / 9)


def test_substring_search_finds_synonyms_that_its_names_contain():
  source = [record(0, ["waste bin"], "bin"), record(1, ["cabin"]), record(2, ["bin"])]
  z_text = {"waste bin": AXES[0], "cabin": AXES[1], "bin": AXES[2]}
  metrics = ConceptRetrieval(source).evaluate(Context(Table(AXES[:3], z_text))).metrics
  assert metrics["synonyms"] == 1
  assert metrics["substring_synonyms_r1"] == 50  # Of the two with "bin" in the name, one is right.
  assert metrics["substring_synonyms_r5"] == 100


def test_ranks_match_loops():
  rng = np.random.default_rng(0)
  queries, candidates = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 11))
  right, left_out = (rng.random((7, 11)) < p for p in (0.3, 0.2))
  right[:, 0], left_out = True, left_out & ~right
  expected = []
  for q, good, out in zip(queries, right, left_out):
    best = max(q @ c for c, g in zip(candidates, good) if g)
    expected.append(sum(q @ c >= best for c, g, o in zip(candidates, good, out) if not g and not o))
  for size in (1, 3, 100):
    assert best_ranks(queries, candidates, right, left_out, size).tolist() == expected


def test_a_diverged_model_is_always_wrong():
  right = np.eye(2, dtype=bool)
  nan = np.full((2, 3), np.nan, np.float32)
  assert (best_ranks(nan, nan, right, np.zeros((1, 1), bool)) == 1).all()


def test_chance_is_the_share_of_all_draws():
  for results, good, k in itertools.product((1, 4, 6), (0, 1, 3), (1, 2, 5)):
    if good > results:
      continue
    draws = list(itertools.combinations(range(results), min(k, results)))
    expected = np.mean([min(draw) < good for draw in draws])
    assert hit_probability(results, good, k) == pytest.approx(expected)
  right = np.array([[1, 0, 0], [1, 1, 0]], bool)
  assert chance(right, 1) == pytest.approx(100 * (1 / 3 + 2 / 3) / 2)


def test_the_linear_baseline_learns_what_is_linear():
  rng = np.random.default_rng(0)
  bars = {"horizontal": np.s_[10:14, :], "vertical": np.s_[:, 10:14], "dot": np.s_[8:16, 8:16]}
  source = []
  for name in [*bars] * 20:
    image = rng.integers(200, 256, (24, 24, 3)).astype(np.uint8)
    image[bars[name]] = 0
    source.append({"image": image, "text": f"{name} thing", "names": [name], "concept": [name]})
  baseline = LinearBaseline(source, {"found": ConceptRetrieval(source)}, image_size=24, limit=45)
  metrics = baseline.evaluate(Context(None)).metrics
  assert metrics["found/image_to_text_r1"] == 100
  assert metrics["found/text_to_image_r1"] == 100
