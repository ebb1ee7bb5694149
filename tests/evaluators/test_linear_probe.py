"""The linear probe: trained on one set, tested on sets with labels that map to its classes."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluators import labeled_sets
from clip_jax.evaluators.classes import Classes
from clip_jax.evaluators.embedding_cache import EmbeddingCache
from clip_jax.evaluators.labeled_sets import LabeledSet, competing
from clip_jax.evaluators.linear_classifier import Lbfgs
from clip_jax.evaluators.linear_probe import LinearProbe
from clip_jax.evaluators.results import Context
from measuring import measure

NAMES = ("cat", "dog", "fox", "owl")


class Vectors:
  """An embedder that returns images, which are vectors, unchanged."""

  def encode_image(self, images):
    return np.asarray(images, np.float32)


def records(*pairs):
  return [{"image": list(map(float, image)), "label": label} for image, label in pairs]


def towards(*classes):
  """Returns a vector between class vectors, nearest to the first."""
  return np.sum([np.eye(4)[c] * (len(classes) - k) for k, c in enumerate(classes)], 0)


TRAIN = records(
  *[
    (towards(c) + 0.1 * np.random.default_rng(k).normal(size=4), c)
    for k in range(10)
    for c in range(4)
  ]
)
SOLVER = Lbfgs(penalties=(1e-2,))


def probe(test, **others):
  return LinearProbe(LabeledSet(TRAIN, classes=NAMES), test, dict(others), SOLVER)


def test_the_probe_is_trained_once_and_tested_on_every_set():
  test = LabeledSet(records((towards(0), 0), (towards(1), 1), (towards(2), 3)))
  few = LabeledSet(records((towards(0, 2), 2), (towards(3, 2), 2)), classes={2: 2, 3: "owl"})
  two = LabeledSet(
    records((towards(2), "wild"), (towards(0), "tame"), (towards(3), "tame")),
    classes={"wild": ("fox", "owl"), "tame": 0},
  )
  several = LabeledSet(records((towards(1), [0, 1]), (towards(1), []), (towards(1), [2, 3])))
  result = probe(test, few=few, two=two, several=several).evaluate(Context(Vectors()))
  metrics = result.metrics
  assert metrics["top1"] == pytest.approx(200 / 3)
  # The first image is nearest to a cat, but the only candidates are fox and owl.
  assert metrics["few/top1"] == 50 and metrics["few/classes"] == 2
  assert metrics["two/top1"] == pytest.approx(200 / 3) and metrics["two/classes"] == 3
  assert metrics["several/top1"] == 50 and metrics["several/examples"] == 2
  assert metrics["train_examples"] == 40
  detail = result.detail
  assert detail["fit"]["penalty"] == 0.01 and detail["train"]["records"] == 40
  assert set(detail["others"]) == {"few", "two", "several"}
  assert detail["standard_error"]["few/top1"] == pytest.approx(100 * 0.5 / 2**0.5)


def test_test_records_of_other_classes_can_be_left_out():
  test = LabeledSet(
    records((towards(0), 0), (towards(1), 7)), classes={0: 0, 1: 1}, others="leave_out"
  )
  assert measure(probe(test), Vectors())["examples"] == 1
  with pytest.raises(UserError, match="label 7, .* the 2 classes"):
    measure(probe(LabeledSet(records((towards(1), 7)), classes={0: 0, 1: 1})), Vectors())


def test_labels_of_published_sets_map_to_imagenet_classes():
  imagenet = Classes([], "imagenet")
  found = competing("objectnet", imagenet)
  assert len(found) == 113 and found["bicycle"] == (671, 444)
  assert competing("imagenet_a", imagenet)["6"] == (6,)
  assert competing(("cat", "owl"), Classes([], NAMES)) == {"cat": (0,), "owl": (3,)}


def test_unreadable_training_images_are_skipped(monkeypatch):
  monkeypatch.setattr("clip_jax.evaluators.embedding_cache.UNREADABLE_SHARE", 0.5)
  from clip_jax.data.decode import UnreadableImage

  class Prepares(Vectors):
    class model:
      image = None

    def preprocess(self, image):
      if image == "damaged":
        raise UnreadableImage("damaged")
      return image

  source = [*TRAIN, {"image": "damaged", "label": 1}]
  known = labeled_sets.training_features(
    EmbeddingCache(Prepares()), LabeledSet(source, classes=NAMES), "tower"
  )
  assert len(known.x) == len(known.y) == 40 and known.images.unreadable == [40]


def test_probing_a_diverged_model_is_an_error():
  with pytest.raises(UserError, match="features are not finite.*diverged"):
    labeled_sets.training_features(
      EmbeddingCache(Vectors()),
      LabeledSet(records(*[([np.nan] * 4, c) for c in range(4)]), classes=NAMES),
      "tower",
    )


@pytest.mark.parametrize(
  "train, message",
  [
    (records((towards(0), 0), (towards(1), [1, 2])), "Record 1 has several labels"),
    (records((towards(0), 0)), "3 of 4 classes have no images.* 'dog', 'fox', 'owl'"),
    (records((towards(0), 4)), "Record 0 has label 4, .* the 4 classes"),
  ],
)
def test_an_invalid_training_set_is_an_error(train, message):
  with pytest.raises(UserError, match=message):
    labeled_sets.training_features(
      EmbeddingCache(Vectors()), LabeledSet(train, classes=NAMES), "tower"
    )


@pytest.mark.parametrize(
  "given, message",
  [
    ("imagenet_v2", "classes='imagenet_v2' of a test set.* imagenet, "),
    ({"hound": "dig"}, "'hound' of a test set maps to 'dig', .* the 4 training classes"),
  ],
)
def test_a_test_set_with_classes_that_were_not_trained_on_is_an_error(given, message):
  with pytest.raises(UserError, match=message):
    competing(given, Classes([], NAMES))
