"""Scores of captions against values computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluators.caption_quality import CaptionQuality, cider
from clip_jax.evaluators.results import Context

REFERENCES = [["a red flower in the sun"], ["two dogs play"], ["The red car.", "a car"]]


def test_equal_captions_of_four_words_have_the_full_score_and_others_none():
  scores = cider(["A red flower, in the sun!", "nothing of it", "blue"], REFERENCES)
  np.testing.assert_allclose(scores, [10, 0, 0])


def test_a_score_is_that_of_a_calculation_by_hand():
  # Image 2 in 1-grams: "red" occurs with 2 of 3 images, "the" with 2, "car" with 1.
  rare, common = np.log(3), np.log(3 / 2)
  norms = np.sqrt(rare**2 + 2 * common**2) * np.sqrt(rare**2 + common**2)
  one = (rare**2 + common**2) / norms  # "red car" against "the red car".
  two = rare**2 / (rare * np.sqrt(2) * rare)  # "red car" against "the red", "red car".
  first = (one + two) / 4 * np.exp(-1 / 72)
  # Against "a car": "a" occurs with 2 of 3 images; no common 2-gram; equal lengths.
  second = rare**2 / np.sqrt(rare**2 + common**2) ** 2 / 4
  scores = cider(["x", "y", "red car"], REFERENCES)
  assert scores[2] == pytest.approx(10 * (first + second) / 2)


def test_repeated_words_do_not_help():
  twice = cider(["two two two dogs", "two dogs play", "x"], [["two dogs play"]] * 2 + [["a b"]])
  assert twice[0] < twice[1]


class Records:
  def __len__(self):
    return 3

  def __getitem__(self, i):
    return {"image": np.zeros((2, 2, 3), np.uint8), "text": REFERENCES[i]}


def test_the_evaluator_counts_matches_with_any_caption_of_a_record():
  written = ["a red flower in the sun", "two cats play", "A car"]
  embedder = SimpleNamespace(caption=lambda images, beams: written[: len(images)])
  result = CaptionQuality(Records()).evaluate(Context(embedder))
  assert result.metrics["exact"] == pytest.approx(200 / 3) and result.metrics["examples"] == 3
  assert result.metrics["cider"] == pytest.approx(cider(written, REFERENCES).mean())
  assert result.detail["first_captions"] == written
  with pytest.raises(UserError, match="cannot write captions"):
    CaptionQuality(Records()).evaluate(Context(SimpleNamespace()))
