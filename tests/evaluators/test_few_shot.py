"""Few-shot classification, compared with least squares on augmented rows."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluators.few_shot import FewShot, ridge
from clip_jax.evaluators.results import Context
from measuring import measure


class Vectors:
  """An embedder that returns images, which are vectors, unchanged."""

  def encode_image(self, images):
    return np.asarray(images, np.float32)


def records(x, y):
  return [{"image": row, "label": int(label)} for row, label in zip(x, y)]


def blobs(n, classes=3, D=5, seed=0, spread=1.0):
  rng = np.random.default_rng(seed)
  y = np.arange(n) % classes
  centres = np.random.default_rng(9).normal(size=(classes, D)) * 2
  return (centres[y] + spread * rng.normal(size=(n, D))).astype(np.float32), y


def by_least_squares(x, y, test, classes, penalty=1024.0):
  """Computes ridge regression as plain least squares with extra rows for the penalty."""
  mean, deviation = x.mean(0), x.std(0) + 1e-5
  whitened = lambda v: np.hstack([(v - mean) / deviation, np.full((len(v), 1), 100.0)])
  a, targets = whitened(x), 2.0 * np.eye(classes)[y] - 1
  rows = np.vstack([a, penalty**0.5 * np.eye(a.shape[1])])
  w = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((a.shape[1], classes))]), rcond=None)[0]
  return whitened(test) @ w


@pytest.mark.parametrize("n, D", [(60, 5), (9, 20)])  # More rows than columns, and fewer.
def test_ridge_is_the_penalised_least_squares_solution(n, D):
  x, y = blobs(n, D=D)
  test, _ = blobs(30, D=D, seed=1)
  np.testing.assert_allclose(ridge(x, y, 3)(test), by_least_squares(x, y, test, 3), atol=1e-4)


def test_accuracy_is_the_mean_over_random_draws():
  x, y = blobs(60, spread=2.5)
  test, right = blobs(40, seed=1, spread=2.5)
  names = ("a", "b", "c")
  result = FewShot(
    records(x, y), records(test, right), classes=names, shots=(1, 4), seeds=3
  ).evaluate(Context(Vectors()))
  expected = {1: [], 4: []}
  for seed in range(3):
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(y == c)) for c in range(3)]
    for shots, found in expected.items():
      chosen = np.concatenate([one[:shots] for one in order])
      scores = by_least_squares(x[chosen], y[chosen], test, 3)
      found.append(100 * np.mean(scores.argmax(1) == right))
  for shots, each in expected.items():
    name = f"{shots}_shot_top1"
    assert result.detail["by_seed"][name] == pytest.approx(each)
    assert result.metrics[name] == pytest.approx(np.mean(each))
    assert result.detail["standard_error"][name] == pytest.approx(np.std(each, ddof=1) / 3**0.5)
  assert result.metrics["examples"] == 40 and result.metrics["classes"] == 3
  assert result.metrics["4_shot_top1"] > result.metrics["chance"]
  assert result.detail["penalty"] == 1024 and result.detail["train"]["records"] == 60


def test_the_standard_error_of_one_seed_is_zero():
  x, y = blobs(9)
  result = FewShot(
    records(x, y), records(x, y), classes=("a", "b", "c"), shots=(1,), seeds=1
  ).evaluate(Context(Vectors()))
  assert result.detail["standard_error"] == {"1_shot_top1": 0.0}


def test_too_few_images_of_a_class_are_an_error():
  x, y = blobs(12)
  with pytest.raises(UserError, match=r"Class 'a' has 4 .*shots=\(1, 5\) needs 5"):
    measure(FewShot(records(x, y), records(x, y), classes=("a", "b", "c"), shots=(1, 5)), Vectors())


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(shots=()), r"shots is \(\); FewShot expects a tuple of 1 or more entries"),
    (dict(shots=(0,)), r"shots is \(0,\); FewShot expects .* at least 1"),
    (dict(seeds=0), "seeds is 0; FewShot"),
    (dict(features="logits"), "features is 'logits'; FewShot expects 'tower' or 'embedding'"),
  ],
)
def test_invalid_arguments_are_an_error_before_anything_is_embedded(arguments, message):
  with pytest.raises(UserError, match=message):
    FewShot(records(*blobs(3)), records(*blobs(3)), classes=("a", "b", "c"), **arguments)
