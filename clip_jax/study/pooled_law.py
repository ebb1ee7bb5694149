"""One law of error for every public run: its fit, its predictions and their intervals.

The terms are described in `law_terms`. Fitting maximises the posterior: SciPy's least squares of
the log-odds of the error, with a soft L1 loss that limits the influence of outliers, and one
residual for the prior of each parameter. The posterior is approximated by a normal one around its
maximum, as in Laplace's approximation. The noise of each group of runs (a corpus and protocol) is
estimated from its residuals. A prediction's variance is that of the parameters, of the noise, and
of the law itself, which grows with the distance to the nearest run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np
from scipy import linalg, stats

from clip_jax.study.evidence import METRICS, Observation
from clip_jax.study.law_terms import Terms

LEVEL = 0.9  # Coverage of the intervals.
_OUTLIER = 2.0  # Residual, in standard deviations, above which the loss grows linearly.
_NOISE = 0.05  # Prior of the standard deviation of log-odds within a group of runs,
_STEPS = 200  # Largest number of steps of a fit.
_NOISE_RUNS = 8  # which counts as that many runs.
_ROUNDING = 0.1  # Points of noise in addition to the precision of a number.
_DRIFT = 0.03  # Deviation of the law in log-odds for each octave to the nearest run.
_DRIFT_LIMIT = 0.35
_DEGREES = (
  8  # Degrees of freedom of Student's t: intervals allow for a wrong estimate of the noise.
)


@dataclasses.dataclass(frozen=True)
class Forecast:
  """Predicted accuracy in percent.

  Attributes:
    accuracy: median.
    low, high: ends of the interval with coverage `LEVEL`.
    deviation: standard deviation of the log-odds.
    octaves: distance to the nearest run in factors of 2.
    nearest: the nearest run.
  """

  accuracy: float
  low: float
  high: float
  deviation: float
  octaves: float
  nearest: Observation


class PooledLaw:
  """A law of one metric, fitted to runs of several corpora.

  Attributes:
    metric: name in `evidence.METRICS`.
    runs: the runs it was fitted to.
    theta: parameters by key of `Terms.keys`.
    noise: group -> factor of the noise of its runs.
  """

  def __init__(
    self,
    metric: str,
    runs: Sequence[Observation],
    theta: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    *,
    prior: "PooledLaw | None" = None,
  ):
    """Fits the law, or takes over parameters that were fitted before.

    Args:
      metric: name in `evidence.METRICS`.
      runs: runs to fit, with accuracies.
      theta, noise: parameters of an earlier fit, 0 where missing; None fits them.
      prior: law of another metric, around whose parameters this law's are expected.
    """
    self.metric, self.runs, self.chance = metric, tuple(runs), METRICS[metric][1]
    self.terms = Terms(self.runs)
    self._mean = np.array([p.mean for p in self.terms.parameters])
    self._deviation = np.array([p.deviation for p in self.terms.parameters])
    if prior is not None:
      self._mean = np.array(
        [prior.theta.get(key, m) for key, m in zip(self.terms.keys, self._mean)]
      )
    self._design = self.terms.design(self.runs)
    self._measured = np.array([_log_odds(r.accuracy, self.chance) for r in self.runs])
    if theta is None:
      values, self.noise = self._fit()
    else:
      values, self.noise = (
        np.array([theta.get(key, 0.0) for key in self.terms.keys]),
        dict(noise or {}),
      )
    self._values = values
    self.theta: dict[str, float] = dict(zip(self.terms.keys, map(float, values)))

  def __call__(self, questions: Sequence[Observation]) -> list[Forecast]:
    """Predicts the accuracy of some runs."""
    middle, jacobian = self.terms.design(questions)(self._values)
    octaves, nearest = self._distances(questions)
    scales = np.array([self.noise.get(q.group, self._usual_noise) for q in questions])
    spread = _noise(_accuracy(middle, self.chance), 0.05, self.chance) * scales
    drift = np.minimum(_DRIFT * octaves, _DRIFT_LIMIT)
    own = ((jacobian @ self._covariance) * jacobian).sum(1)
    deviation = np.sqrt(own + spread**2 + drift**2)
    reach = stats.t.ppf((1 + LEVEL) / 2, _DEGREES) * deviation
    middle, low, high = (
      _accuracy(m, self.chance) for m in (middle, middle + reach, middle - reach)
    )
    numbers = zip(middle, low, high, deviation, octaves)
    return [
      Forecast(float(m), float(lo), float(hi), float(d), float(o), self.runs[i])
      for (m, lo, hi, d, o), i in zip(numbers, nearest)
    ]

  def covariance(self, questions: Sequence[Observation]) -> np.ndarray:
    """Covariance of the log-odds of some runs from the parameters alone, float [n, n]."""
    _, jacobian = self.terms.design(questions)(self._values)
    return jacobian @ self._covariance @ jacobian.T

  def _fit(self):
    lower, upper = self.terms.bounds()
    theta = np.clip(self._mean, lower + 1e-6, upper - 1e-6)
    scales = np.ones(len(self.runs))
    groups = [run.group for run in self.runs]
    accuracy = np.array([r.accuracy for r in self.runs])
    base = _noise(accuracy, np.array([r.precision for r in self.runs]), self.chance)
    noise = {}
    for _ in range(3):
      theta = self._least_squares(theta, base * scales, lower, upper)
      ratio = np.abs(self._design(theta)[0] - self._measured) / base
      for group in sorted(set(groups)):
        own = ratio[[g == group for g in groups]]
        # Both a robust and an ordinary estimate: outliers count, but not with their squares.
        square = (np.median(own) / 0.6745) * math.sqrt(np.mean(np.square(np.minimum(own, 6))))
        noise[group] = math.sqrt((_NOISE_RUNS + len(own) * square) / (_NOISE_RUNS + len(own)))
      scales = np.array([noise[g] for g in groups])
    return theta, noise

  def _least_squares(self, theta, noise, lower, upper):
    """Maximises the posterior by damped Gauss-Newton steps within the bounds.

    It does what SciPy's least squares do with a soft L1 loss, but solves normal equations, because
    nearly all rows of its Jacobian would be those of the prior.
    """
    prior = 1 / self._deviation**2
    damping, (cost, gradient, information) = 1e-3, self._normal_equations(theta, noise)
    for _ in range(_STEPS):
      # Parameters at a bound that would leave it stay where they are.
      free = ~((theta <= lower) & (gradient > 0) | (theta >= upper) & (gradient < 0))
      system = information[np.ix_(free, free)] + np.diag(damping * prior[free])
      step = np.zeros_like(theta)
      step[free] = -linalg.solve(system, gradient[free], assume_a="pos")
      other = np.clip(theta + step, lower, upper)
      found = self._normal_equations(other, noise)
      if found[0] < cost:
        gain, theta, damping = cost - found[0], other, damping / 5
        cost, gradient, information = found
        if gain < 1e-6 * (1 + cost):
          break
      else:
        damping = max(damping, 1e-3) * 5
        if damping > 1e8:
          break
    return theta

  def _normal_equations(self, theta, noise):
    """(half the loss, its gradient [P], Gauss-Newton approximation of its Hessian [P, P])."""
    predicted, jacobian = self._design(theta)
    residual = (predicted - self._measured) / noise
    root = np.sqrt(1 + (residual / _OUTLIER) ** 2)
    away = (theta - self._mean) / self._deviation
    cost = _OUTLIER**2 * (root - 1).sum() + 0.5 * (away**2).sum()
    gradient = jacobian.T @ (residual / root / noise) + away / self._deviation
    weighted = jacobian / (noise * np.sqrt(root))[:, None]
    return cost, gradient, weighted.T @ weighted + np.diag(1 / self._deviation**2)

  @functools.cached_property
  def _covariance(self):
    """Covariance of the parameters, float [P, P]."""
    predicted, jacobian = self._design(self._values)
    precision = np.array([r.precision for r in self.runs])
    accuracy = np.array([r.accuracy for r in self.runs])
    scales = np.array([self.noise[r.group] for r in self.runs])
    noise = _noise(accuracy, precision, self.chance) * scales
    # Weights of the soft L1 loss: an outlier has little.
    residual = (predicted - self._measured) / noise / _OUTLIER
    weight = 1 / np.sqrt(1 + residual**2) / noise**2
    information = (jacobian * weight[:, None]).T @ jacobian + np.diag(1 / self._deviation**2)
    return np.linalg.inv(information)

  @functools.cached_property
  def _usual_noise(self):
    """Factor of the noise of a group without runs: that of a noisy group."""
    return max(1.0, float(np.quantile(list(self.noise.values()), 0.7)))

  @functools.cached_property
  def _positions(self):
    return _coordinates(self.runs)

  def _distances(self, questions):
    """(octaves to the nearest run [n], its index [n]); another corpus counts as one octave."""
    here = _coordinates(questions)
    apart = np.abs(here[:, None] - self._positions[None]).sum(2)
    corpora, own = np.array([q.corpus for q in questions]), np.array([r.corpus for r in self.runs])
    protocols, done = [np.array([o.protocol for o in g]) for g in (questions, self.runs)]
    apart = apart + 0.5 * (protocols[:, None] != done[None])
    kinds, mine = [np.array([(o.objective, o.method) for o in g]) for g in (questions, self.runs)]
    apart = apart + 1.0 * (corpora[:, None] != own[None])
    apart = apart + 1.0 * (kinds[:, None] != mine[None]).any(2)
    nearest = apart.argmin(1)
    return apart[np.arange(len(nearest)), nearest], nearest


def _coordinates(runs):
  """Logarithms to the base of 2 of what the error depends on, [n, 4]."""
  return np.log2(
    np.array(
      [
        (r.unique, r.samples, math.sqrt(r.shape.parameters), math.sqrt(r.shape.tokens))
        for r in runs
      ]
    )
  )


def _log_odds(accuracy, chance):
  """Log-odds of the error, of an accuracy in percent above that of guessing."""
  share = np.clip((accuracy - chance) / (100 - chance), 0.0005, 0.9995)
  return np.log((1 - share) / share)


def _accuracy(log_odds, chance):
  return chance + (100 - chance) / (1 + np.exp(log_odds))


def _noise(accuracy, precision, chance):
  """Standard deviation of log-odds: of runs, and of a number's rounding."""
  share = np.clip((accuracy - chance) / (100 - chance), 0.002, 0.998)
  return np.hypot(_NOISE, (_ROUNDING + precision) / (100 * share * (1 - share)))
