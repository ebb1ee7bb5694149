"""The terms of the pooled law: which parameters it has, and how they enter a run's error.

The log-odds of a run's error e (above that of guessing) are

  log(e / (1 - e)) = offset + log(E + A X^-eps + B (X / X0)^-beta) + amplitude log(1 + (T0 / T)^p)

with X the effective number of examples, from Muennighoff et al. 2023 (Scaling Data-Constrained
Language Models, sec. 3.1) with a value of repetition that grows with the data:

  X = U (1 + R (1 - e^-((S / U - 1) / R))),  R = R0 U^kappa

U distinct examples, S examples seen, and T steps, if their number was not tuned. E, A, B, eps,
beta, R, the amplitude and p are exponentials, and the exponents of the sizes of the towers in A
and B and of U in R are bounded by 0. So whatever the parameters are, the error falls with S, with
U, with T, and in A and B with the size of the towers.

Each of these quantities (a slot) is a linear function of the parameters: common ones, and effects
of the corpus, its family, the protocol, the objective, the method and the model, each with a normal
prior around 0. An effect without data stays at its prior, whose width then widens the interval.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math

import numpy as np

from clip_jax.study.evidence import Observation

SLOTS = (
  "offset",
  "logE",
  "logA",
  "logB",
  "log_eps",
  "log_beta",
  "pivot",
  "logR",
  "log_amplitude",
  "logT0",
  "log_p",
)
_UNIT = 1e8  # Examples are counted in units of this many.
_CUTS = (100.0, 80.0, 60.0, 40.0, 20.0, 10.0)
UNKNOWN = "?"  # Level of an effect without data.


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter of the law.

  Attributes:
    name: "common: name", or "effect: level".
    slot: the quantity in `SLOTS` that it is added to.
    mean, deviation: of its normal prior.
    lower: lower bound.
  """

  name: str
  slot: str
  mean: float
  deviation: float
  lower: float = -math.inf


# name -> (slot, prior mean, prior deviation, covariate, lower bound)
_COMMON = {
  "floor": ("logE", -2.0, 0.7, "one", None),
  "model term": ("logA", -0.7, 0.7, "one", None),
  "image size in A": ("logA", -0.35, 0.12, "image", 0.0),
  "text size in A": ("logA", -0.1, 0.1, "text", 0.0),
  "data term": ("logB", 0.0, 1.0, "one", None),
  "image size in B": ("logB", -0.05, 0.05, "image", 0.0),
  "text size in B": ("logB", -0.1, 0.1, "text", 0.0),
  "patches in B": ("logB", -0.1, 0.15, "patches", None),
  "patches": ("offset", -0.15, 0.15, "patches", None),
  "eps": ("log_eps", -2.0, 0.5, "one", None),
  "beta": ("log_beta", 0.0, 0.3, "one", None),
  "image size in beta": ("log_beta", 0.0, 0.05, "image", None),
  "patches in beta": ("log_beta", 0.0, 0.05, "patches", None),
  "pivot": ("pivot", 0.0, 1.0, "one", None),
  "repeats": ("logR", 2.0, 1.0, "one", None),
  "pairs in R": ("logR", 0.5, 0.3, "unique", 0.0),
  "image size in R": ("logR", 0.0, 0.15, "image", None),
  "amplitude": ("log_amplitude", -0.7, 1.0, "one", None),
  "T0": ("logT0", 9.0, 1.0, "one", None),
  "image size in T0": ("logT0", 0.0, 0.3, "image", None),
  "p": ("log_p", 0.3, 0.4, "one", None),
}
# Parameters in which a larger value raises the error: bounded above by 0, stored with their sign.
_FALLING = ("image size in A", "text size in A", "image size in B", "text size in B")
# effect -> ((slot, prior deviation), ...)
_EFFECTS = {
  "own": (("offset", 1.0), ("logE", 1.0), ("logA", 1.5), ("logB", 1.0), ("log_beta", 0.3)),
  "own model": (("offset", 0.3), ("logB", 0.3), ("logA", 0.3)),
  "own method": (("offset", 0.3), ("logB", 0.2)),
  "family": (("offset", 0.16), ("logB", 0.15), ("logA", 0.15), ("log_beta", 0.07), ("logR", 0.3)),
  "corpus": (
    ("offset", 0.12),
    ("logB", 0.1),
    ("logA", 0.1),
    ("log_beta", 0.05),
    ("log_eps", 0.3),
    ("logR", 0.2),
  ),
  "protocol": (("offset", 0.1), ("logB", 0.15), ("log_eps", 0.2), ("log_beta", 0.07)),
  "objective": (("offset", 0.15), ("logB", 0.15), ("logA", 0.15), ("log_beta", 0.05)),
  "method": (("offset", 0.15), ("logB", 0.2), ("logR", 0.7)),
  "model": (
    ("offset", 0.08),
    ("logB", 0.12),
    ("logA", 0.15),
    ("logR", 0.3),
    ("logT0", 0.3),
    ("log_beta", 0.03),
  ),
  "model in family": (("offset", 0.05),),
}


def level(effect: str, run: Observation) -> str:
  """Level of an effect for a run; "" if the run has none, as plain CLIP has no method effect."""
  own, plain = run.protocol == "own", run.method == "CLIP" and run.objective == "clip"
  return {
    "own": run.corpus if own else "",
    "own model": f"{run.shape.name} {run.corpus}" if own else "",
    "own method": f"{run.method} {run.objective} {run.corpus}" if own and not plain else "",
    "family": run.family or UNKNOWN,
    "corpus": run.corpus or UNKNOWN,
    "protocol": run.protocol,
    "objective": "" if run.objective == "clip" else run.objective,
    "method": "" if run.method == "CLIP" else run.method,
    "model": run.shape.name,
    "model in family": f"{run.shape.name} {run.family}",
  }[effect]


class Terms:
  """Parameters of the law for the levels that occur in some runs.

  Attributes:
    parameters: the parameters, tuple [P].
    levels: effect -> levels that have parameters, the last one for all others.
  """

  def __init__(self, runs: Iterable[Observation]):
    runs = list(runs)
    self.levels = {
      effect: (*sorted({level(effect, run) for run in runs} - {"", UNKNOWN}), UNKNOWN)
      for effect in _EFFECTS
    }
    found = []
    for name, (slot, mean, deviation, _, lower) in _COMMON.items():
      bound = -math.inf if lower is None or name in _FALLING else lower
      found.append(Parameter(f"common: {name}", slot, mean, deviation, bound))
    for cut in _CUTS[1:]:
      found.append(Parameter(f"cut: {cut:g}%", "offset", -0.15, 0.12))
    for effect, slots in _EFFECTS.items():
      for one in self.levels[effect]:
        for slot, deviation in slots:
          found.append(Parameter(f"{effect}: {one}", slot, 0.0, deviation))
    for family in self.levels["family"]:
      found.append(Parameter(f"cut in family: {family}", "offset", 0.0, 0.1))
    self.parameters = tuple(found)
    self._index = {(p.name, p.slot): i for i, p in enumerate(found)}

  @property
  def keys(self) -> list[str]:
    """A unique name for each parameter."""
    return [f"{p.name} ({p.slot})" for p in self.parameters]

  def bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) bounds, float [P] each."""
    falling = {f"common: {name}" for name in _FALLING}
    upper = [0.0 if p.name in falling else math.inf for p in self.parameters]
    return np.array([p.lower for p in self.parameters]), np.array(upper)

  def design(self, runs: Sequence[Observation]) -> "Design":
    """Builds the matrix that takes parameters to slots for some runs."""
    matrix, covariates = np.zeros((len(runs), len(self.parameters))), _covariates(runs)
    for name, (slot, _, _, covariate, _) in _COMMON.items():
      matrix[:, self._index[f"common: {name}", slot]] = covariates[covariate]
    for row, run in enumerate(runs):
      for effect, slots in _EFFECTS.items():
        one = level(effect, run)
        if one:
          one = one if one in self.levels[effect] else UNKNOWN
          for slot, _ in slots:
            matrix[row, self._index[f"{effect}: {one}", slot]] = 1
      family = run.family if run.family in self.levels["family"] else UNKNOWN
      if run.kept < 100:
        for cut, weight in _cut_weights(run.kept).items():
          if cut < 100:
            matrix[row, self._index[f"cut: {cut:g}%", "offset"]] = weight
        column = self._index[f"cut in family: {family}", "offset"]
        matrix[row, column] = math.log(100 / run.kept)
    numbers = [
      np.array([getattr(r, n) for r in runs], float) for n in ("unique", "samples", "steps")
    ]
    return Design(matrix, [p.slot for p in self.parameters], *numbers)


def _covariates(runs):
  array = lambda get: np.array([get(run) for run in runs], float)
  return {
    "one": np.ones(len(runs)),
    "image": np.log(array(lambda r: r.shape.image_parameters) / 86),
    "text": np.log(array(lambda r: r.shape.text_parameters) / 63.4),
    "patches": np.log(array(lambda r: r.shape.tokens) / 196),
    "unique": np.log(array(lambda r: r.unique) / _UNIT),
  }


def _cut_weights(quality):
  """Weights of the two nearest cuts, linear in the logarithm of the share that is kept."""
  quality = max(quality, _CUTS[-1])
  above = min(c for c in _CUTS if c >= quality)
  below = max(c for c in _CUTS if c <= quality)
  if above == below:
    return {above: 1.0}
  share = math.log(above / quality) / math.log(above / below)
  return {above: 1 - share, below: share}


class Design:
  """The law at some runs, as a function of its parameters."""

  def __init__(
    self,
    matrix: np.ndarray,
    slots: Sequence[str],
    unique: np.ndarray,
    samples: np.ndarray,
    steps: np.ndarray,
  ):
    self._columns = {s: np.array([i for i, one in enumerate(slots) if one == s]) for s in SLOTS}
    self._parts = {slot: matrix[:, columns] for slot, columns in self._columns.items()}
    self.unique, self.samples, self.steps = unique, samples, steps

  def __call__(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (log-odds of the error [n], their derivatives by the parameters [n, P])."""
    at = {slot: part @ theta[self._columns[slot]] for slot, part in self._parts.items()}
    x, x_by_log_repeats = self._log_examples(np.exp(at["logR"]))
    eps, beta = np.exp(at["log_eps"]), np.exp(at["log_beta"])
    terms = np.stack([at["logE"], at["logA"] - eps * x, at["logB"] - beta * (x - at["pivot"])])
    top = terms.max(0)
    weights = np.exp(terms - top)
    total = weights.sum(0)
    floor, model, data = weights / total
    by_x = -(model * eps + data * beta)
    penalty, by_amplitude, by_t0, by_p = self._penalty(at)
    slopes = {
      "offset": np.ones_like(x),
      "logE": floor,
      "logA": model,
      "logB": data,
      "log_eps": -model * eps * x,
      "log_beta": -data * beta * (x - at["pivot"]),
      "pivot": data * beta,
      "logR": by_x * x_by_log_repeats,
      "log_amplitude": by_amplitude,
      "logT0": by_t0,
      "log_p": by_p,
    }
    jacobian = self._total(slopes)
    return at["offset"] + top + np.log(total) + penalty, jacobian

  def _total(self, slopes):
    """Derivatives by the parameters; each of them is part of one slot."""
    jacobian = np.empty((len(self.unique), sum(map(len, self._columns.values()))))
    for slot, columns in self._columns.items():
      jacobian[:, columns] = slopes[slot][:, None] * self._parts[slot]
    return jacobian

  def _log_examples(self, repeats):
    """(log of the effective examples, its derivative by log R), float [n] each."""
    again = np.maximum(self.samples / self.unique - 1, 0)
    decay = np.exp(-again / repeats)
    factor = 1 + repeats * -np.expm1(-again / repeats)
    slope = (repeats * (1 - decay) - again * decay) / factor
    return np.log(np.minimum(self.unique, self.samples) / _UNIT * factor), slope

  def _penalty(self, at):
    """Penalty of too few steps and its derivatives by log amplitude, log T0 and log p."""
    known = np.isfinite(self.steps)
    distance = at["logT0"] - np.log(np.where(known, self.steps, 1.0))
    p = np.exp(at["log_p"])
    power = np.exp(np.clip(p * distance, -50, 50))
    amplitude = np.where(known, np.exp(at["log_amplitude"]), 0.0)
    penalty = amplitude * np.log1p(power)
    by_distance = amplitude * power / (1 + power) * p
    return penalty, penalty, by_distance, by_distance * distance
