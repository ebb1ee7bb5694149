"""Few-shot classification: a ridge regression from the features of a few images of each class."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluators.answers import Answer, Question, told
from clip_jax.evaluators.labelled import Labelled, check_features, tested, training
from clip_jax.evaluators.shared import Shared
from clip_jax.interfaces import Embedder, Source


class FewShot(Question):
  """Accuracy on a test set after so many images of each class, by a closed form; no tuning.

  Source: big_vision, evaluators/fewshot_lsr.py: features whitened by the mean and deviation of the
  chosen images, a constant of 100 appended, targets +1 for the class and -1 for the others, ridge
  regression with a fixed penalty of 2^10, several draws of the images.
  """

  def __init__(self, train: Source, test: Source, label: str = "label",
               classes: str | tuple[str, ...] | Mapping[str, Any] | None = None,
               shots: tuple[int, ...] = (1, 5, 10, 25), seeds: int = 3, penalty: float = 2.0**10,
               features: str = "tower", resize: str | None = None):
    """Asks about the records of `test`.

    Args:
      train, test: records {"image": ..., label: ...}.
      label: the field that holds the class, in both.
      classes: as `classes.Classes` has it, of both.
      shots: images of each class that are trained on.
      seeds: draws of these images, 0, 1, ...
      penalty: of the squared weights, that of the constant included.
      features: "tower", the image tower's output before the projection; or "embedding".
      resize: how images are made the model's size, a name in `shared.RESIZES`; None for the
        model's own way. Theirs is the shorter side to 256, then the central 224: "central_crop".

    Raises:
      UserError: an empty set, no shots or seeds, or no such name.
    """
    check_features(features)
    if not shots or min(shots) < 1 or seeds < 1:
      raise UserError(f"shots={tuple(shots)} and seeds={seeds}; expected one or more of each, from "
                      "1 on.")
    self._train = Labelled(train, label, classes, resize=resize)
    self._test = Labelled(test, label, resize=resize)
    self._shots, self._seeds = tuple(shots), seeds
    self._penalty, self._features = penalty, features

  def answer(self, embedder: Embedder) -> Answer:
    """`{k}_shot_top1` in percent, means over seeds, `chance`, and counts.

    Raises:
      UserError: a class has fewer images than `shots`, or a label is no class.
    """
    shared = Shared.of(embedder)
    known = training(shared, self._train, self._features)
    C, most = len(known.classes), max(self._shots)
    have = np.bincount(known.y, minlength=C)
    if have.min() < most:
      raise UserError(
          f"Class {known.classes.called[have.argmin()]!r} has {have.min()} images to train on, and "
          f"shots={self._shots} needs {most} of each class. Give more, or ask for fewer shots.")
    found = {shots: [] for shots in self._shots}
    for seed in range(self._seeds):
      rng = np.random.default_rng(seed)
      order = [rng.permutation(np.flatnonzero(known.y == c)) for c in range(C)]
      for shots in self._shots:
        chosen = np.concatenate([one[:shots] for one in order])  # Of fewer shots: among these.
        classify = ridge(known.x[chosen], known.y[chosen], C, penalty=self._penalty)
        metrics, _, images = tested(shared, self._test, self._features, known.classes, classify)
        found[shots].append(metrics["top1"])
    name = "{}_shot_top1".format
    return Answer(
        {**{name(shots): float(np.mean(each)) for shots, each in found.items()},
         **{key: metrics[key] for key in ("chance", "examples", "classes")}},
        told(self._test.source, images, train=told(self._train.source, known.images),
             features=self._features, penalty=self._penalty, seeds=list(range(self._seeds)),
             by_seed={name(shots): each for shots, each in found.items()},
             deviation={name(shots): _deviation(each) for shots, each in found.items()},
             # Over the draws; that the test set is a sample, too, comes on top.
             standard_error={name(shots): _deviation(each) / len(each) ** .5
                             for shots, each in found.items()}))


def _deviation(values):
  return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def ridge(x: np.ndarray, y: np.ndarray, classes: int, *, penalty: float = 2.0**10,
          constant: float = 100.0) -> Callable[[np.ndarray], np.ndarray]:
  """A linear classifier, least squares with a penalty.

  Args:
    x: float32 [n, D].
    y: int [n], classes.
    classes: C.
    penalty: of the squared weights.
    constant: appended to every whitened row.

  Returns:
    The classifier: float32 [m, D] -> float32 [m, C].
  """
  mean, deviation = x.mean(0), x.std(0) + 1e-5
  whitened = lambda v: np.pad((v - mean) / deviation, ((0, 0), (0, 1)), constant_values=constant)
  a = whitened(x).astype(np.float64)                                          # [n, D + 1]
  targets = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)             # [n, C]
  if len(a) > a.shape[1]:
    w = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ targets)
  else:  # The same by the smaller system: (A'A + p)^-1 A' = A' (AA' + p)^-1.
    w = a.T @ np.linalg.solve(a @ a.T + penalty * np.eye(len(a)), targets)
  w = w.astype(np.float32)
  return lambda v: whitened(v).astype(np.float32) @ w
