"""Few-shot classification: ridge regression on the features of a few images of each class."""

from collections.abc import Callable
from typing import Annotated

import numpy as np

from clip_jax.cli.values import Length, PositiveFloat, PositiveInt, checked
from clip_jax.errors import UserError
from clip_jax.evaluators.classes import ClassNames
from clip_jax.evaluators.embedding_cache import Resizing
from clip_jax.evaluators.labeled_sets import (
  Features,
  LabeledSet,
  test_accuracies,
  training_features,
)
from clip_jax.evaluators.results import Context, Evaluator, Result, source_detail
from clip_jax.interfaces import Source


@checked
class FewShot(Evaluator):
  """Few-shot accuracy on a test set, with a closed-form classifier that needs no tuning.

  As in big_vision, features are standardised by the mean and standard deviation of the chosen
  training images, a constant of 100 is appended, and ridge regression with a fixed penalty of 2^10
  is fitted to targets of +1 for the class and -1 for the others. The training images are drawn
  several times.

  Source: big_vision, evaluators/fewshot_lsr.py.
  """

  def __init__(
    self,
    train: Source,
    test: Source,
    label: str = "label",
    classes: ClassNames = None,
    shots: Annotated[tuple[PositiveInt, ...], Length(1)] = (1, 5, 10, 25),
    seeds: PositiveInt = 3,
    penalty: PositiveFloat = 2.0**10,
    features: Features = "tower",
    resize: Resizing | None = None,
  ):
    """Creates the evaluator.

    Args:
      train: training records, {"image": ..., label: ...}.
      test: test records with the same fields.
      label: name of the label field of both sets.
      classes: the classes of both sets, as in `classes.Classes`.
      shots: numbers of training images per class.
      seeds: number of random draws of the training images, with seeds 0, 1, ...
      penalty: L2 penalty of the weights, including the one of the appended constant.
      features: "tower", the image tower's output before the projection; or "embedding".
      resize: how images are resized to the model's input size, a name in
        `embedding_cache.RESIZES`; None for the model's own preprocessing.
        big_vision resizes the shorter side to 256 and takes the central 224 pixels, which is
        "central_crop".

    Raises:
      UserError: an empty set.
    """
    self._train = LabeledSet(train, label, classes, resize=resize)
    self._test = LabeledSet(test, label, resize=resize)
    self._shots, self._seeds = tuple(shots), seeds
    self._penalty, self._features = penalty, features

  def evaluate(self, context: Context) -> Result:
    """Computes `{k}_shot_top1`, the mean over seeds in percent, `chance`, and counts.

    Raises:
      UserError: a class has fewer images than `shots`, or a label is not one of the classes.
    """
    cache = context.embedder
    known = training_features(cache, self._train, self._features)
    C, most = len(known.classes), max(self._shots)
    have = np.bincount(known.y, minlength=C)
    if have.min() < most:
      raise UserError(
        f"Class {known.classes.called[have.argmin()]!r} has {have.min()} training images, but "
        f"shots={self._shots} needs {most} per class. Add images, or reduce shots."
      )
    found = {shots: [] for shots in self._shots}
    for seed in range(self._seeds):
      rng = np.random.default_rng(seed)
      order = [rng.permutation(np.flatnonzero(known.y == c)) for c in range(C)]
      for shots in self._shots:
        # The images of fewer shots are a subset of the images of more shots.
        chosen = np.concatenate([one[:shots] for one in order])
        classify = ridge(known.x[chosen], known.y[chosen], C, penalty=self._penalty)
        metrics, _, images = test_accuracies(
          cache, self._test, self._features, known.classes, classify
        )
        found[shots].append(metrics["top1"])
    name = "{}_shot_top1".format
    return Result(
      {
        **{name(shots): float(np.mean(each)) for shots, each in found.items()},
        **{key: metrics[key] for key in ("chance", "examples", "classes")},
      },
      source_detail(
        self._test.source,
        images,
        train=source_detail(self._train.source, known.images),
        features=self._features,
        penalty=self._penalty,
        seeds=list(range(self._seeds)),
        by_seed={name(shots): each for shots, each in found.items()},
        deviation={name(shots): _deviation(each) for shots, each in found.items()},
        # Covers the draws of training images only, not the sampling of the test set.
        standard_error={
          name(shots): _deviation(each) / len(each) ** 0.5 for shots, each in found.items()
        },
      ),
    )


def _deviation(values):
  return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def ridge(
  x: np.ndarray, y: np.ndarray, classes: int, *, penalty: float = 2.0**10, constant: float = 100.0
) -> Callable[[np.ndarray], np.ndarray]:
  """Fits a linear classifier by ridge regression.

  Args:
    x: training features, float32 [n, D].
    y: class of each row, int [n].
    classes: number of classes, C.
    penalty: L2 penalty of the weights.
    constant: value appended to every standardised row, in place of a bias.

  Returns:
    The classifier: float32 [m, D] -> scores, float32 [m, C].
  """
  mean, deviation = x.mean(0), x.std(0) + 1e-5
  whitened = lambda v: np.pad((v - mean) / deviation, ((0, 0), (0, 1)), constant_values=constant)
  a = whitened(x).astype(np.float64)  # [n, D + 1]
  targets = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)  # [n, C]
  if len(a) > a.shape[1]:
    w = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ targets)
  else:  # The n x n system is smaller: (A'A + p)^-1 A' = A' (AA' + p)^-1.
    w = a.T @ np.linalg.solve(a @ a.T + penalty * np.eye(len(a)), targets)
  w = w.astype(np.float32)
  return lambda v: whitened(v).astype(np.float32) @ w
