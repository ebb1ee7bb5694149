"""Multinomial logistic regression on cached features, by full-batch L-BFGS or by SGD."""

import dataclasses
import functools
from typing import Annotated, Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import optax

from clip_jax.cli.values import (
  Length,
  NonNegativeFloat,
  PositiveFloat,
  PositiveInt,
  Range,
  Seed,
  checked,
)
from clip_jax.parallel.mesh import BATCH
from clip_jax.parallel.placement import replicated_sharding, shard_batch, to_global

Sweep = Annotated[tuple[PositiveFloat, ...], Length(1)]
Share = Annotated[float, Range(above=0, below=1)]
_ROWS = 8192  # Rows of logits computed at a time: 33 MB for 1,000 classes.


@dataclasses.dataclass(frozen=True)
class Fit:
  """A linear classifier of features.

  Attributes:
    mean: mean of the training features, float32 [D], used to standardise the input.
    deviation: standard deviation of the training features, float32 [D].
    w: weights, float32 [D, C].
    b: bias, float32 [C].
    detail: JSON-serialisable record of how the classifier was fitted.
  """

  mean: np.ndarray
  deviation: np.ndarray
  w: np.ndarray
  b: np.ndarray
  detail: dict[str, Any]

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Computes logits: float32 [n, D] -> float32 [n, C]."""
    return (x - self.mean) / self.deviation @ self.w + self.b


@checked
@dataclasses.dataclass(frozen=True)
class Lbfgs:
  """Full-batch L-BFGS with the L2 penalty chosen on held-out examples.

  Minimises mean cross-entropy + penalty / 2 * sum(w^2) on standardised features, with the bias
  unpenalised. The final classifier is fitted to all examples with the best penalty.

  Source: the linear probe of Radford et al. 2021.

  Attributes:
    penalties: penalties to try; each fit is initialised with the solution of the next larger one.
    iterations: maximum number of L-BFGS iterations per fit; each evaluates the loss once or more.
    tolerance: gradient norm at which a fit has converged.
    validation: fraction of the examples held out to choose the penalty.
    seed: seed that selects the held-out examples.
  """

  penalties: Sweep = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
  iterations: PositiveInt = 1000
  tolerance: NonNegativeFloat = 1e-4
  validation: Share = 0.1
  seed: Seed = 0

  def fit(self, x: np.ndarray, y: np.ndarray, classes: int, mesh: Mesh) -> Fit:
    """Fits a classifier.

    Args:
      x: features, float32 [n, D].
      y: class of each row, int [n].
      classes: number of classes, C.
      mesh: devices to shard the rows over.
    """
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    held = held_out(len(x), self.validation, self.seed)
    standard = (x - mean) / deviation
    tried, chosen = {}, None
    with jax.set_mesh(mesh):
      rows, labels, kept, all_of_them = _shard_rows(
        mesh,
        np.pad(standard, ((0, 0), (0, 1)), constant_values=1),
        y.astype(np.int32),
        (~held).astype(np.float32),
        np.ones(len(x), np.float32),
      )
      w = to_global(np.zeros((x.shape[1] + 1, classes), np.float32), replicated_sharding(mesh))
      solve = functools.partial(_lbfgs, tolerance=self.tolerance, iterations=self.iterations)
      for penalty in sorted(self.penalties, reverse=True):
        w, steps, norm = solve(w, rows, labels, kept, penalty)
        share = _validation(np.asarray(w)[:-1], np.asarray(w)[-1], standard, y, held)
        tried[penalty] = {
          "validation_top1": share,
          "iterations": int(steps),
          "grad_norm": float(norm),
        }
        # Ties go to the largest penalty, because penalties are tried in descending order.
        if chosen is None or share > tried[chosen[0]]["validation_top1"]:
          chosen = penalty, w
      w, steps, norm = solve(chosen[1], rows, labels, all_of_them, chosen[0])
    return Fit(
      mean,
      deviation,
      np.asarray(w)[:-1],
      np.asarray(w)[-1],
      {
        "solver": "L-BFGS",
        "penalty": chosen[0],
        "tried": {f"{k:g}": v for k, v in tried.items()},
        "at_the_edge": len(tried) > 1 and chosen[0] in (min(tried), max(tried)),
        "iterations": int(steps),
        "grad_norm": float(norm),
        "converged": bool(norm <= self.tolerance),
        "held_out": int(held.sum()),
      },
    )


@checked
@dataclasses.dataclass(frozen=True)
class Sgd:
  """SGD with momentum and cosine decay to 0, with the learning rate chosen on held-out examples.

  The layer is initialised to zero. All learning rates are trained at once without the held-out
  examples; the best one is then trained on all examples.

  Source: the study's probe has a zero-initialised layer and a learning rate swept for each tower.
  It does not specify momentum, batch size and epochs; these are those of SLIP's probe (Mu et al.
  2021).

  Attributes:
    rates: peak learning rates to try, for standardised features.
    epochs: number of passes over the examples.
    batch_size: examples per step.
    momentum: momentum coefficient.
    validation: fraction of the examples held out to choose the learning rate.
    seed: seed of the held-out examples and of the shuffling.
  """

  rates: Sweep = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
  epochs: PositiveInt = 90
  batch_size: PositiveInt = 1024
  momentum: Annotated[float, Range(0, below=1)] = 0.9
  validation: Share = 0.1
  seed: Seed = 0

  def fit(self, x: np.ndarray, y: np.ndarray, classes: int, mesh: Mesh) -> Fit:
    """Fits a classifier.

    Args:
      x: features, float32 [n, D].
      y: class of each row, int [n].
      classes: number of classes, C.
      mesh: devices to shard each batch over; the features are replicated.
    """
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    held = held_out(len(x), self.validation, self.seed)
    with jax.set_mesh(mesh):
      rows, labels = to_global(
        ((x - mean) / deviation, y.astype(np.int32)), replicated_sharding(mesh)
      )
      train = functools.partial(self._train, rows, labels, classes)
      many = train(np.flatnonzero(~held), self.rates)
      tried = {
        rate: _validation(w, b, (x - mean) / deviation, y, held)
        for rate, w, b in zip(self.rates, *many)
      }
      rate = max(tried, key=tried.get)
      w, b = (v[0] for v in train(np.arange(len(x)), (rate,)))
    return Fit(
      mean,
      deviation,
      w,
      b,
      {
        "solver": "SGD",
        "rate": rate,
        "tried": {f"{k:g}": v for k, v in tried.items()},
        "at_the_edge": len(tried) > 1 and rate in (min(tried), max(tried)),
        "epochs": self.epochs,
        "batch_size": self.batch_size,
        "momentum": self.momentum,
        "held_out": int(held.sum()),
      },
    )

  def _train(self, rows, labels, classes, of, rates):
    """Trains on the examples `of` with each rate; returns weights [R, D, C] and biases [R, C]."""
    size = min(self.batch_size, len(of))
    per_epoch = len(of) // size  # Each epoch drops a different random remainder.
    rng = np.random.default_rng(self.seed)
    zeros = lambda: (
      np.zeros((len(rates), rows.shape[1], classes), np.float32),
      np.zeros((len(rates), classes), np.float32),
    )
    wb, velocity = zeros(), zeros()
    for epoch in range(self.epochs):
      order = rng.permutation(of)[: per_epoch * size].reshape(per_epoch, size).astype(np.int32)
      wb, velocity = _sgd_epoch(
        wb,
        velocity,
        rows,
        labels,
        order,
        np.float32(rates),
        np.float32(epoch / self.epochs),
        np.float32(1 / (self.epochs * per_epoch)),
        np.float32(self.momentum),
      )
    return tuple(map(np.asarray, wb))


def held_out(n: int, share: float, seed: int) -> np.ndarray:
  """Mask of a random fraction `share` of n examples, bool [n]; at least one and never all."""
  held = np.zeros(n, bool)
  held[np.random.default_rng(seed).permutation(n)[: min(n - 1, max(1, round(share * n)))]] = True
  return held


def _replicated(tree):
  """Replicates each array over all devices, so that every host can read it."""
  return jax.tree.map(lambda v: lax.with_sharding_constraint(v, P()), tree)


def _validation(w, b, x, y, held):
  """Top-1 accuracy on the held-out examples, in percent."""
  return 100 * float(np.mean((x[held] @ w + b).argmax(1) == y[held]))


def _shard_rows(mesh, *arrays):
  """Pads each array [n, ...] with zeros and reshapes it to [K, R, ...], R sharded over the mesh."""
  n = len(arrays[0])
  R = min(-(-_ROWS // mesh.size), -(-n // mesh.size)) * mesh.size
  K = -(-n // R)

  def padded(v):
    filled = np.zeros((K * R, *v.shape[1:]), v.dtype)
    filled[:n] = v
    return filled.reshape(K, R, *v.shape[1:])

  return to_global([padded(v) for v in arrays], NamedSharding(mesh, P(None, BATCH)))


def _cross_entropy(logits, y, weight):
  """Weighted sum over rows of the cross-entropy of logits [R, C] and classes y [R]."""
  return (weight * optax.softmax_cross_entropy_with_integer_labels(logits, y)).sum()


@jax.jit
def _lbfgs(w, x, y, weight, penalty, *, iterations, tolerance):
  """Minimises the loss; returns weights [D + 1, C], number of iterations and gradient norm."""

  def one(w, part):
    x, y, weight = part
    return _cross_entropy(jnp.matmul(x, w, precision="highest"), y, weight)

  def loss(w):
    sums = lax.map(lambda part: jax.checkpoint(one, prevent_cse=False)(w, part), (x, y, weight))
    return sums.sum() / weight.sum() + penalty / 2 * jnp.square(w[:-1]).sum()

  solver = optax.lbfgs()

  def step(carry):
    w, value, gradient, state, _, count = carry
    update, state = solver.update(gradient, state, w, value=value, grad=gradient, value_fn=loss)
    search = state[-1]  # The line search has already evaluated the loss at the new weights.
    return w + update, search.value, search.grad, state, jnp.any(update != 0), count + 1

  def unfinished(carry):
    _, _, gradient, _, moved, count = carry
    return moved & (count < iterations) & (jnp.linalg.norm(gradient) > tolerance)

  start = (w, *jax.value_and_grad(loss)(w), solver.init(w), jnp.bool_(True), jnp.int32(0))
  w, _, gradient, _, _, count = lax.while_loop(unfinished, step, start)
  return _replicated((w, count, jnp.linalg.norm(gradient)))


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _sgd_epoch(wb, velocity, x, y, order, rates, begun, per_step, momentum):
  """Trains one epoch with each learning rate.

  Args:
    wb: weights [R, D, C] and biases [R, C] of the R learning rates.
    velocity: momentum buffers, shaped as `wb`.
    x: features, float32 [n, D].
    y: class of each row, int32 [n].
    order: rows of each batch, int32 [steps, B].
    rates: peak learning rates, float32 [R].
    begun: fraction of the run that is complete before this epoch.
    per_step: fraction of the run that one step takes.
    momentum: momentum coefficient.
  """

  def loss(wb, x, y):
    logits = jnp.matmul(x, wb[0], precision="highest") + wb[1]
    return _cross_entropy(logits, y, 1 / len(x))

  def step(carry, now):
    wb, velocity = carry
    k, at = now
    images, labels = shard_batch(x[at]), y[at]
    grad = jax.vmap(jax.grad(loss), (0, None, None))(wb, images, labels)
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grad)
    rate = rates * (1 + jnp.cos(jnp.pi * (begun + k * per_step))) / 2  # [R]
    wb = jax.tree.map(lambda p, v: p - rate.reshape(-1, *[1] * (p.ndim - 1)) * v, wb, velocity)
    return (wb, velocity), None

  return _replicated(lax.scan(step, (wb, velocity), (jnp.arange(len(order)), order))[0])
