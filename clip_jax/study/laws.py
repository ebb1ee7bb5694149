"""Scaling laws of error against data, repetition, compute and model size, with intervals.

  E(x) = floor + (top - floor) (1 + x / scale)^-exponent

This is the saturating power law of Zhai et al. 2022 (Scaling Vision Transformers, sec. 2.2), except
that the error of an untrained model, `top`, is known instead of fitted. If examples are repeated, x
is their effective number:

  x = D (1 + R (1 - e^-((epochs - 1) / R))),  with D distinct examples

after Muennighoff et al. 2023 (Scaling Data-Constrained Language Models, sec. 3.1): early
repetitions are worth nearly as much as new examples, and all repetitions together at most R times
the data.

Laws are fitted to the logarithm of the error by SciPy's least squares from several starting points,
with a soft L1 loss that limits the influence of outliers. Intervals come from a residual bootstrap.
They reflect the noise of the points but not a wrong functional form; `held_out` tests for that.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from clip_jax.errors import UserError

UNTRAINED_ERROR = 100.0  # Error of an untrained model in percent (99.9 with 1,000 classes).
OUTLIER = 0.05  # Residual of log error above which the loss grows linearly.
LEVEL = 0.9  # Coverage of the intervals.
MIN_POINTS = 5  # Minimum number of distinct points for a fit.
_FITS = 3  # Number of starting points to fit from, those with the smallest residuals.
_STARTS = [
  (floor, scale, exponent)
  for floor in (0.02, 0.2, 0.5)
  for scale in (0.1, 0.5, 0.9)
  for exponent in (0.2, 0.5, 1.0)
]


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted law.

  Attributes:
    parameters: float [4], the logit of floor / top, and the logarithms of scale, exponent and R.
    replicates: float [n, 4], parameters fitted to bootstrap resamples.
    residuals: float [points], log of measured over predicted error, corrected for the degrees of
      freedom.
    top: error without any data, in percent.
    repeats: whether R, the value of repetition, was fitted; if not, its entry is meaningless.
  """

  parameters: np.ndarray
  replicates: np.ndarray
  residuals: np.ndarray
  top: float
  repeats: bool

  def __call__(self, x: ArrayLike, epochs: ArrayLike = 1.0) -> np.ndarray:
    """Predicts the error in percent, float [n].

    Args:
      x: float [n], distinct examples seen, or multiply-adds.
      epochs: float [n] or a number, how often each example is seen.
    """
    return np.exp(self._log_error(self.parameters[None], x, epochs)[0])

  def interval(
    self, x: ArrayLike, epochs: ArrayLike = 1.0, *, level: float = LEVEL, noise: bool = True
  ) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the error of a new run; without `noise`, of the law itself.

    Args:
      x: float [n], distinct examples seen, or multiply-adds.
      epochs: float [n] or a number, how often each example is seen.
      level: coverage of the interval.
      noise: whether to include the scatter of runs around the law.

    Returns:
      (low, high), float [n] each, in percent.
    """
    middle = self._log_error(self.parameters[None], x, epochs)
    each = self._log_error(self.replicates, x, epochs)
    each = middle + (each - middle) * self._interval_factor
    if noise:
      rng = np.random.default_rng(0)
      each = each + rng.choice(self.residuals, each.shape)
    low, high = np.quantile(each, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.exp(low), np.minimum(np.exp(high), 100.0)

  @property
  def constants(self) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of floor, scale, exponent and, if fitted, repeats (R)."""
    off = (self.replicates - self.parameters) * self._interval_factor
    both = self.parameters + np.concatenate([np.zeros((1, 4)), off])
    floor, scale, exponent, repeats = _constants(both, self.top)
    named = {"floor": floor, "scale": scale, "exponent": exponent}
    if self.repeats:
      named["repeats"] = repeats
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = {}
    for name, values in named.items():
      low, high = np.quantile(values[1:], ends)
      found[name] = float(values[0]), float(low), float(high)
    return found

  def _log_error(self, parameters, x, epochs):
    x, epochs = _as_arrays(x, epochs)
    return _predict_log_error(parameters, x, epochs, self.top)

  @property
  def _interval_factor(self):
    # The bootstrap underestimates the spread of few points. This factor, tuned so that 90%
    # intervals cover 90% with 6 degrees of freedom, approaches 1 for many points.
    return 1 + 2 / max(1, len(self.residuals) - (4 if self.repeats else 3))

  @property
  def spread(self) -> float:
    """Standard deviation of runs around the law, relative to their error."""
    return float(np.sqrt(np.mean(np.square(self.residuals))))


def fit(
  x: ArrayLike,
  error: ArrayLike,
  epochs: ArrayLike = 1.0,
  *,
  top: float = UNTRAINED_ERROR,
  replicates: int = 200,
  seed: int = 0,
) -> Law:
  """Fits a law to some points.

  Args:
    x: float [n], distinct examples (or multiply-adds), above 0.
    error: float [n], percent, above 0.
    epochs: float [n] or a number, how often each example is seen; R is fitted if any is above 1.
    top: error at x = 0, in percent.
    replicates: number of bootstrap resamples.
    seed: random seed of the bootstrap.

  Raises:
    UserError: fewer than `MIN_POINTS` distinct points (one more if R is fitted), or values that are
      not finite and above 0.
  """
  x, epochs = _as_arrays(x, epochs)
  error = np.asarray(error, float)
  repeats = bool((epochs > 1.001).any())
  distinct = len(np.unique(np.stack([x, epochs]), axis=1).T)
  if distinct < MIN_POINTS + repeats:
    raise UserError(
      f"Cannot fit a law with {3 + repeats} constants to {distinct} distinct points; "
      f"at least {MIN_POINTS + repeats} are needed. Add sizes to the grid."
    )
  if not (np.isfinite(x) & (x > 0)).all() or not (np.isfinite(error) & (error > 0)).all():
    raise UserError("Fitting a law needs finite sizes and errors above 0; leave out other points.")
  effective = np.log(_effective_examples(x, epochs, np.array([[8.0]]))[0])
  box = np.array(
    [
      [-7, effective.min() - 3, np.log(0.03), np.log(0.3)],
      [4, effective.max() + 3, np.log(8.0), np.log(300.0)],
    ]
  )
  starts = np.array(
    [
      [np.log(floor / (1 - floor)), np.quantile(effective, scale), np.log(exponent), np.log(8.0)]
      for floor, scale, exponent in _STARTS
    ]
  )
  free = 4 if repeats else 3
  measured = np.log(error)
  # Each start has the same optimum on all of the paper's series, so fit from the nearest few only.
  off = np.abs(_predict_log_error(starts, x, epochs, top) - measured).sum(1)
  fits = [
    _least_squares(x, epochs, measured, starts[i], top, box, free) for i in np.argsort(off)[:_FITS]
  ]
  best, _ = min(fits, key=lambda fit: fit[1])
  predicted = _predict_log_error(best[None], x, epochs, top)[0]
  residuals = (measured - predicted) * np.sqrt(len(x) / max(1, len(x) - free))
  rng = np.random.default_rng(seed)
  resampled = predicted + rng.choice(residuals - residuals.mean(), (replicates, len(x)))
  fitted = [_least_squares(x, epochs, one, best, top, box, free)[0] for one in resampled]
  return Law(best, np.array(fitted).reshape(-1, 4), residuals, top, repeats)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Prediction of the largest size by a law fitted to the smaller ones.

  Attributes:
    x: the largest size.
    measured: measured error at that size in percent, mean over its points.
    predicted: predicted error, likewise.
    low, high: 90% interval of the prediction.
    factor: the largest size divided by the second largest.
  """

  x: float
  measured: float
  predicted: float
  low: float
  high: float
  factor: float

  @property
  def miss(self) -> float:
    """Percentage points by which the prediction is too high."""
    return self.predicted - self.measured

  @property
  def inside(self) -> bool:
    """Whether the measured error is inside the interval."""
    return self.low <= self.measured <= self.high


def held_out(
  x: ArrayLike, error: ArrayLike, epochs: ArrayLike = 1.0, *, top: float = UNTRAINED_ERROR
) -> HeldOut | None:
  """Predicts the largest size from a fit to the others; None if those are too few for a fit."""
  x, epochs = _as_arrays(x, epochs)
  error = np.asarray(error, float)
  largest = x == x.max()
  rest = ~largest
  try:
    law = fit(x[rest], error[rest], epochs[rest], top=top)
  except UserError:
    return None
  low, high = law.interval(x[largest], epochs[largest])
  return HeldOut(
    float(x.max()),
    float(error[largest].mean()),
    float(law(x[largest], epochs[largest]).mean()),
    float(low.mean()),
    float(high.mean()),
    float(x.max() / x[rest].max()),
  )


def frontier(x: ArrayLike, error: ArrayLike) -> np.ndarray:
  """Marks the Pareto-optimal points, bool [n]: no point of smaller or equal x has a lower error."""
  x, error = np.asarray(x, float), np.asarray(error, float)
  return np.array([error[i] <= error[x <= x[i]].min() for i in range(len(x))])


def _as_arrays(x: ArrayLike, epochs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  x = np.atleast_1d(np.asarray(x, float))
  return x, np.broadcast_to(np.asarray(epochs, float), x.shape)


def _effective_examples(x, epochs, repeats):
  """Effective number of examples, [k, n], for x examples seen `epochs` times; `repeats` [k, 1]."""
  repetitions = np.maximum(epochs - 1, 0)
  return np.minimum(epochs, 1) * x * (1 + repeats * -np.expm1(-repetitions / repeats))


def _constants(parameters, top):
  floor, scale, exponent, repeats = parameters.T
  return top / (1 + np.exp(-floor)), np.exp(scale), np.exp(exponent), np.exp(repeats)


def _predict_log_error(parameters, x, epochs, top):
  """Log error, [k, n], predicted by each of k sets of parameters, [k, 4]."""
  floor, scale, exponent, repeats = (c[:, None] for c in _constants(parameters, top))
  effective = _effective_examples(x, epochs, repeats)
  return np.log(floor + (top - floor) * np.exp(-exponent * np.log1p(effective / scale)))


def _slopes(parameters, x, epochs, top):
  """Derivatives of the log error by each of the 4 parameters, [n, 4]."""
  floor, scale, exponent, repeats = (float(c[0]) for c in _constants(parameters[None], top))
  once, repetitions = np.minimum(epochs, 1) * x, np.maximum(epochs - 1, 0)
  effective = _effective_examples(x, epochs, repeats)
  power = np.exp(-exponent * np.log1p(effective / scale))
  error = floor + (top - floor) * power
  by_log_effective = -exponent * (top - floor) * power / error * effective / (effective + scale)
  decay = np.exp(-repetitions / repeats)
  return np.stack(
    [
      floor * (1 - floor / top) * (1 - power) / error,
      -by_log_effective,
      -exponent * (top - floor) * power / error * np.log1p(effective / scale),
      by_log_effective * once / effective * (repeats * (1 - decay) - repetitions * decay),
    ],
    axis=1,
  )


def _least_squares(x, epochs, measured, start, top, box, free):
  """Fits the first `free` parameters to log errors `measured`, [n], within a box, [2, 4]."""
  complete = lambda theta: np.concatenate([theta, start[free:]])
  found = optimize.least_squares(
    lambda theta: _predict_log_error(complete(theta)[None], x, epochs, top)[0] - measured,
    start[:free],
    lambda theta: _slopes(complete(theta), x, epochs, top)[:, :free],
    bounds=box[:, :free],
    loss="soft_l1",
    f_scale=OUTLIER,
  )
  return complete(found.x), found.cost
