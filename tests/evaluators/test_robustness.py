"""The robustness summary, compared with the formulas evaluated by hand."""

import math

import pytest

from clip_jax.errors import UserError
from clip_jax.evaluators.results import Context, Evaluator, Result, check_needs, evaluate_all
from clip_jax.evaluators.robustness import Robustness, effective_robustness, line

VARIANTS = {"v2": "imagenet_v2/top1", "a": "imagenet_a/top1"}


class Fixed(Evaluator):
  """An evaluator with a given accuracy."""

  def __init__(self, top1):
    self.top1 = top1

  def evaluate(self, context):
    return Result({"top1": self.top1})


def after(**top1):
  """A context in which sets, by name, have been evaluated."""
  return Context(None, {name: Result({"top1": value}) for name, value in top1.items()})


def test_robustness_averages_the_metrics_of_other_evaluators():
  evaluators = {
    "imagenet": Fixed(60.0),
    "imagenet_v2": Fixed(52.0),
    "imagenet_a": Fixed(20.0),
    "robustness": Robustness("imagenet/top1", VARIANTS),
  }
  result = evaluate_all(evaluators, Context(None))["robustness"]
  assert result == Result(
    {"average": 36.0, "standard": 60.0}, {"variants": {"v2": 52.0, "a": 20.0}, "lines": {}}
  )


def test_effective_robustness_is_the_distance_to_the_line_on_logit_axes():
  logit = lambda percent: math.log(percent / (100 - percent))
  (x1, y1), (x2, y2) = (55.0, 42.0), (76.0, 63.0)
  slope = (logit(y2) - logit(y1)) / (logit(x2) - logit(x1))
  expected = logit(y1) + slope * (logit(70.0) - logit(x1))
  found = (
    Robustness("imagenet/top1", VARIANTS, {"v2": ((x1, y1), (x2, y2))})
    .evaluate(after(imagenet=70.0, imagenet_v2=66.0, imagenet_a=5.0))
    .metrics
  )
  assert found["effective_v2"] == pytest.approx(66.0 - 100 / (1 + math.exp(-expected)))
  assert effective_robustness(x1, y1, line(((x1, y1), (x2, y2)))) == pytest.approx(0)


def test_the_line_through_more_than_two_references_is_the_least_squares_fit():
  points = [(50.0, 40.0), (60.0, 52.0), (70.0, 60.0), (80.0, 73.0)]
  x, y = ([math.log(p[k] / (100 - p[k])) for p in points] for k in (0, 1))
  mean = lambda v: sum(v) / len(v)
  slope = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y)) / sum(
    (a - mean(x)) ** 2 for a in x
  )
  assert line(points) == pytest.approx((slope, mean(y) - slope * mean(x)))


@pytest.mark.parametrize(
  "points", [(), ((50.0, 40.0),), ((50.0, 40.0), (50.0, 41.0)), ((50.0, 0.0), (60.0, 41.0))]
)
def test_references_that_do_not_define_a_line_are_an_error(points):
  with pytest.raises(UserError, match="references=.* do not define a line"):
    line(points)


def test_missing_metrics_and_variants_are_errors():
  with pytest.raises(
    UserError,
    match="'imagenet_a/top1'; available are imagenet/top1, imagenet_v2/top1. Did you mean",
  ):
    Robustness("imagenet/top1", VARIANTS).evaluate(after(imagenet=1.0, imagenet_v2=1.0))
  with pytest.raises(UserError, match="'v3'; available are v2, a"):
    Robustness("imagenet/top1", VARIANTS, {"v3": ((50.0, 40.0), (60.0, 41.0))})
  with pytest.raises(UserError, match="variants={}; expected at least one"):
    Robustness("imagenet/top1", {})


def test_metric_that_no_earlier_evaluator_has_is_found_before_the_work():
  robustness = Robustness("imagenet/top1", VARIANTS)
  sets = dict.fromkeys(("imagenet", "imagenet_a", "imagenet_v2"), Fixed(1.0))
  check_needs({**sets, "robustness": robustness})
  with pytest.raises(UserError, match="no evaluator 'imagenet' runs before it; none do"):
    check_needs({"a": robustness, **sets})
  del sets["imagenet_v2"]
  message = "'robustness' needs the metric 'imagenet_v2/top1', .*; imagenet, imagenet_a do. Did you"
  with pytest.raises(UserError, match=message):
    check_needs({**sets, "robustness": robustness})
