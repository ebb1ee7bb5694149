"""Linear probe: a linear classifier of the frozen image tower's features."""

from collections.abc import Mapping

import jax

from clip_jax.evaluators.answers import Answer, Question, told
from clip_jax.evaluators.labelled import Labelled, check_features, tested, training
from clip_jax.evaluators.regression import Lbfgs, Sgd
from clip_jax.evaluators.shared import Shared
from clip_jax.interfaces import Embedder
from clip_jax.sharding import make_mesh


class LinearProbe(Question):
  """Accuracy of a linear classifier that is trained on one set and tested on one or several.

  Features are embedded once and kept in memory: 4 GB for ImageNet's 1.28 M training images and a
  tower 768 wide.
  """

  def __init__(self, train: Labelled, test: Labelled, others: Mapping[str, Labelled] | None = None,
               solver: Lbfgs | Sgd | None = None, features: str = "tower"):
    """Notes the sets.

    Args:
      train: the set that is trained on.
      test: the set that `top1` is of.
      others: sets that further metrics are of, by the names that these get, such as ImageNet-A;
        `Labelled` says what their labels stand for.
      solver: a `regression.Lbfgs`, which is the default, or a `regression.Sgd`.
      features: "tower", the image tower's output before the projection; or "embedding".

    Raises:
      UserError: no such features.
    """
    check_features(features)
    self._train, self._tests = train, {"": test, **(others or {})}
    self._solver, self._features = solver or Lbfgs(), features

  def answer(self, embedder: Embedder) -> Answer:
    """What `accuracy.accuracies` says of the test set; of others with `name/` before it.

    Raises:
      UserError: a class without images to train on, or a label that is no class.
    """
    shared = Shared.of(embedder)
    known = training(shared, self._train, self._features)
    mesh = getattr(shared, "mesh", None) or make_mesh(devices=jax.local_devices())
    fit = self._solver.fit(known.x, known.y, len(known.classes), mesh)
    metrics, errors, tests = {}, {}, {}
    for name, test in self._tests.items():
      numbers, wrong, images = tested(shared, test, self._features, known.classes, fit)
      before = f"{name}/" if name else ""
      metrics.update({before + metric: value for metric, value in numbers.items()})
      errors.update({before + metric: value for metric, value in wrong.items()})
      tests[name] = told(test.source, images)
    metrics["train_examples"] = float(len(known.x))
    return Answer(metrics, {**tests.pop(""), "others": tests, "features": self._features,
                            "train": told(self._train.source, known.images), "fit": fit.detail,
                            "standard_error": errors})
