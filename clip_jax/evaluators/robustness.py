"""Robustness: a summary of the accuracies of other evaluators on variants of a set."""

from collections.abc import Mapping, Sequence

import numpy as np

from clip_jax.cli.suggest import did_you_mean
from clip_jax.cli.values import checked
from clip_jax.errors import UserError
from clip_jax.evaluators.results import Context, Evaluator, Result


@checked
class Robustness(Evaluator):
  """Average accuracy on variants of a set, and effective robustness relative to other models.

  Attributes:
    needs: the metrics of other evaluators that it reads.
  """

  def __init__(
    self,
    standard: str,
    variants: Mapping[str, str],
    references: Mapping[str, Sequence[tuple[float, float]]] | None = None,
  ):
    """Creates the evaluator.

    Args:
      standard: metric of the accuracy on the set itself, such as "imagenet/top1".
      variants: metric of the accuracy on each variant, by the variant's name, such as
        {"v2": "imagenet_v2/top1"}.
      references: for variants, by name, the (standard, variant) accuracies in percent of the
        reference models that the line is fitted to; at least two with different standard
        accuracies.

    Raises:
      UserError: no variants, references of an unknown variant, or too few references for a line.
    """
    if not variants:
      raise UserError('variants={}; expected at least one, such as {"v2": "imagenet_v2/top1"}.')
    self._standard, self._variants = standard, dict(variants)
    self.needs = (standard, *variants.values())
    self._lines = {name: (line(points), len(points)) for name, points in (references or {}).items()}
    for name in self._lines:
      self._known(name, self._variants)

  def evaluate(self, context: Context) -> Result:
    """Summarises the results of evaluators that ran before.

    The metrics are `average` over the variants and `standard`, in percent, and, for each variant
    with references, its effective robustness `effective_{variant}`, in percentage points.

    Raises:
      UserError: one of the accuracies is not among the results in `context`.
    """
    metrics = context.metrics
    for name in self.needs:
      self._known(name, metrics)
    standard = metrics[self._standard]
    found = {name: metrics[metric] for name, metric in self._variants.items()}
    effective = {
      f"effective_{name}": effective_robustness(standard, found[name], through)
      for name, (through, _) in self._lines.items()
    }
    return Result(
      {"average": float(np.mean(list(found.values()))), "standard": standard, **effective},
      {
        "variants": found,
        "lines": {
          name: {"slope": through[0], "intercept": through[1], "references": count}
          for name, (through, count) in self._lines.items()
        },
      },
    )

  def _known(self, name, among):
    if name not in among:
      raise UserError(
        f"Robustness needs {name!r}; available are {', '.join(among) or 'none'}."
        f"{did_you_mean(name, among)}"
      )


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
  """Fits a least-squares line to accuracies on logit axes.

  Args:
    points: (standard, variant) accuracies in percent.

  Returns:
    (slope, intercept).

  Raises:
    UserError: fewer than two distinct standard accuracies, or an accuracy outside (0, 100).
  """
  x, y = np.array(points, np.float64).reshape(-1, 2).T
  if len(set(x)) < 2 or not all(0 < v < 100 for v in (*x, *y)):
    raise UserError(
      f"references={list(points)} do not define a line; expected at least two "
      "(standard, variant) accuracies in percent, above 0 and below 100, with "
      "different standard accuracies."
    )
  slope, intercept = np.polyfit(_logit(x / 100), _logit(y / 100), 1)
  return float(slope), float(intercept)


def effective_robustness(standard: float, variant: float, through: tuple[float, float]) -> float:
  """Computes how far the accuracy on a variant is above the line, in percentage points.

  Args:
    standard: accuracy on the set itself in percent.
    variant: accuracy on the variant in percent.
    through: (slope, intercept) of the line, as returned by `line`.

  Source: Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts", section 3.
  """
  slope, intercept = through
  share = np.clip(standard / 100, 1e-6, 1 - 1e-6)
  return variant - 100 / (1 + float(np.exp(-(slope * _logit(share) + intercept))))


def _logit(share):
  return np.log(share / (1 - share))
