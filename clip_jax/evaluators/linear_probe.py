"""Linear probe: a linear classifier trained on features of the frozen image tower."""

from collections.abc import Mapping

import jax

from clip_jax.cli.values import checked
from clip_jax.evaluators.labeled_sets import (
  Features,
  LabeledSet,
  test_accuracies,
  training_features,
)
from clip_jax.evaluators.linear_classifier import Lbfgs, Sgd
from clip_jax.evaluators.results import Context, Evaluator, Result, source_detail
from clip_jax.parallel.mesh import make_mesh


@checked
class LinearProbe(Evaluator):
  """Accuracy of a linear classifier trained on one set and tested on one or several sets.

  Features are computed once and cached in memory: 4 GB for ImageNet's 1.28 M training images and a
  tower of width 768.
  """

  def __init__(
    self,
    train: LabeledSet,
    test: LabeledSet,
    others: Mapping[str, LabeledSet] | None = None,
    solver: Lbfgs | Sgd | None = None,
    features: Features = "tower",
  ):
    """Creates the evaluator.

    Args:
      train: the training set.
      test: the test set; its metrics have no prefix.
      others: further test sets, such as ImageNet-A, by the prefix of their metrics. Their `classes`
        map their labels to classes of the training set.
      solver: a `linear_classifier.Lbfgs` (the default) or `linear_classifier.Sgd`.
      features: "tower", the image tower's output before the projection; or "embedding".
    """
    self._train, self._tests = train, {"": test, **(others or {})}
    self._solver, self._features = solver or Lbfgs(), features

  def evaluate(self, context: Context) -> Result:
    """Computes the metrics of `accuracy.accuracies`, prefixed with "name/" for the other sets.

    Raises:
      UserError: a class without training images, or a label that is not one of the classes.
    """
    cache = context.embedder
    known = training_features(cache, self._train, self._features)
    mesh = getattr(cache, "mesh", None) or make_mesh(devices=jax.local_devices())
    fit = self._solver.fit(known.x, known.y, len(known.classes), mesh)
    metrics, errors, tests = {}, {}, {}
    for name, test in self._tests.items():
      numbers, wrong, images = test_accuracies(cache, test, self._features, known.classes, fit)
      before = f"{name}/" if name else ""
      metrics.update({before + metric: value for metric, value in numbers.items()})
      errors.update({before + metric: value for metric, value in wrong.items()})
      tests[name] = source_detail(test.source, images)
    metrics["train_examples"] = float(len(known.x))
    return Result(
      metrics,
      {
        **tests.pop(""),
        "others": tests,
        "features": self._features,
        "train": source_detail(self._train.source, known.images),
        "fit": fit.detail,
        "standard_error": errors,
      },
    )
