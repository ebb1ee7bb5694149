"""Robustness: what other evaluators answered about the variants of a set, in a few numbers."""

from collections.abc import Mapping, Sequence
import difflib

import numpy as np

from clip_jax.errors import UserError
from clip_jax.evaluators.answers import Answer


class Robustness:
  """Average accuracy on variants of a set, and how much better it is than other models' there."""

  def __init__(self, standard: str, variants: Mapping[str, str],
               references: Mapping[str, Sequence[tuple[float, float]]] | None = None):
    """Notes the names.

    Args:
      standard: the accuracy on the set itself, such as "imagenet/top1".
      variants: the accuracy on each variant, by the variant's name: {"v2": "imagenet_v2/top1"}.
      references: of variants, by name, the (standard, variant) accuracies in percent of models that
        draw the line; two or more, which differ in the first.

    Raises:
      UserError: no variants, or references that make no line.
    """
    if not variants:
      raise UserError("variants={}; expected at least one, as {\"v2\": \"imagenet_v2/top1\"}.")
    self._standard, self._variants = standard, dict(variants)
    self._lines = {name: (line(points), len(points)) for name, points in (references or {}).items()}
    for name in self._lines:
      self._known(name, self._variants)

  def summary(self, metrics: Mapping[str, float]) -> Answer:
    """`average` of the variants, and `effective_{variant}` where there are references, in points.

    Raises:
      UserError: a metric that nobody answered.
    """
    for name in (self._standard, *self._variants.values()):
      self._known(name, metrics)
    standard = metrics[self._standard]
    found = {name: metrics[metric] for name, metric in self._variants.items()}
    effective = {f"effective_{name}": effective_robustness(standard, found[name], through)
                 for name, (through, _) in self._lines.items()}
    return Answer(
        {"average": float(np.mean(list(found.values()))), "standard": standard, **effective},
        {"variants": found, "lines": {
            name: {"slope": through[0], "intercept": through[1], "references": count}
            for name, (through, count) in self._lines.items()}})

  def _known(self, name, among):
    if name not in among:
      close = difflib.get_close_matches(name, among, 1)
      raise UserError(f"Robustness asks for {name!r}, and there are {', '.join(among) or 'none'}."
                      + (f" Did you mean {close[0]!r}?" if close else ""))


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
  """(slope, intercept) of the least-squares line through accuracies on logit axes.

  Args:
    points: (standard, variant) accuracies in percent.

  Raises:
    UserError: fewer than two that differ in the first, or an accuracy that is not inside 0 to 100.
  """
  x, y = np.array(points, np.float64).reshape(-1, 2).T
  if len(set(x)) < 2 or not all(0 < v < 100 for v in (*x, *y)):
    raise UserError(f"references={list(points)} draw no line; expected two or more (standard, "
                    "variant) accuracies in percent, above 0 and below 100, that differ in the "
                    "first.")
  slope, intercept = np.polyfit(_logit(x / 100), _logit(y / 100), 1)
  return float(slope), float(intercept)


def effective_robustness(standard: float, variant: float,
                         through: tuple[float, float]) -> float:
  """Accuracy on the variant beyond what the line gives for the standard accuracy, in points.

  Args:
    standard, variant: accuracies in percent; the first above 0 and below 100.
    through: (slope, intercept), what `line` returned.

  Source: Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts", section 3.
  """
  slope, intercept = through
  share = np.clip(standard / 100, 1e-6, 1 - 1e-6)
  return variant - 100 / (1 + float(np.exp(-(slope * _logit(share) + intercept))))


def _logit(share):
  return np.log(share / (1 - share))
