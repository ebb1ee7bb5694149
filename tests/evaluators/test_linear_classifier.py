"""Logistic regression: L-BFGS and SGD, compared with Newton's method and a loop in NumPy."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

from clip_jax.errors import UserError
from clip_jax.evaluators.linear_classifier import Lbfgs, Sgd, held_out
from clip_jax.parallel.mesh import make_mesh


def examples(n=90, D=4, C=3, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, D)) * np.resize([1, 5, 0.2, 1], D) + 3
  w = np.random.default_rng(5).normal(size=(D, C))
  y = ((x - 3) @ w + rng.normal(size=(n, C)) * 2).argmax(1)
  return x.astype(np.float32), y


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def by_newton(x, y, C, penalty, steps=30):
  """Minimises mean cross-entropy + penalty / 2 |w|^2 with full Newton steps; [D + 1, C]."""
  x = np.hstack([(x - x.mean(0)) / (x.std(0) + 1e-5), np.ones((len(x), 1))]).astype(np.float64)
  n, D = x.shape
  theta, shrink = np.zeros(D * C), np.kron(np.r_[np.ones(D - 1), 0], np.ones(C)) * penalty
  for _ in range(steps):
    p = softmax(x @ theta.reshape(D, C))
    gradient = (x.T @ (p - np.eye(C)[y]) / n).ravel() + shrink * theta
    hessian = np.diag(shrink)
    for row, q in zip(x, p):
      hessian = hessian + np.kron(np.outer(row, row), np.diag(q) - np.outer(q, q)) / n
    # The Hessian is singular because a constant added to all biases leaves the loss unchanged.
    theta -= np.linalg.lstsq(hessian, gradient, rcond=None)[0]
  return theta.reshape(D, C)


@pytest.mark.parametrize("devices", [1, 8])
def test_lbfgs_agrees_with_newton(devices, monkeypatch):
  monkeypatch.setattr("clip_jax.evaluators.linear_classifier._ROWS", 40)  # Several chunks of rows.
  x, y = examples()
  fit = Lbfgs(penalties=(0.01,), tolerance=1e-6).fit(
    x, y, 3, make_mesh(devices=jax.devices()[:devices])
  )
  theta = by_newton(x, y, 3, 0.01)
  np.testing.assert_allclose(fit.w, theta[:-1], atol=2e-4)
  np.testing.assert_allclose(fit.b - fit.b.mean(), theta[-1] - theta[-1].mean(), atol=2e-4)
  np.testing.assert_allclose(
    softmax(fit(x)),
    softmax((x - x.mean(0)) / (x.std(0) + 1e-5) @ theta[:-1] + theta[-1]),
    atol=1e-4,
  )
  assert fit.detail["penalty"] == 0.01 and not fit.detail["at_the_edge"]
  assert fit.detail["held_out"] == 9


@pytest.mark.parametrize("penalty", [1e-4, 1.0])
def test_lbfgs_agrees_with_scipy_on_many_classes(penalty):
  x, y = examples(n=400, D=30, C=12)
  fit = Lbfgs(penalties=(penalty,), tolerance=1e-5).fit(
    x, y, 12, make_mesh(devices=jax.devices()[:1])
  )
  features = np.hstack([(x - x.mean(0)) / (x.std(0) + 1e-5), np.ones((len(x), 1))], dtype=float)

  def loss(flat):
    theta = flat.reshape(31, 12)
    logits = features @ theta
    top = special.logsumexp(logits, 1)
    gradient = features.T @ (np.exp(logits - top[:, None]) - np.eye(12)[y]) / len(y)
    gradient[:-1] += penalty * theta[:-1]
    value = (top - logits[np.arange(len(y)), y]).mean() + penalty / 2 * np.square(theta[:-1]).sum()
    return value, gradient.ravel()

  best = optimize.minimize(loss, np.zeros(31 * 12), jac=True, method="BFGS", tol=1e-8)
  assert fit.detail["converged"] and fit.detail["iterations"] < 500
  assert loss(np.vstack([fit.w, fit.b]).ravel())[0] == pytest.approx(best.fun, rel=1e-5)
  np.testing.assert_allclose(fit.w, best.x.reshape(31, 12)[:-1], atol=0.02 / penalty**0.25)


def test_a_fit_that_starts_at_the_optimum_takes_no_iterations():
  x, y = examples()
  one, both = (
    Lbfgs(penalties=penalties).fit(x, y, 3, make_mesh(devices=jax.devices()[:1])).detail["tried"]
    for penalties in ((0.1,), (0.1, 0.099999))
  )
  assert both["0.1"] == one["0.1"] and one["0.1"]["iterations"] > 0
  assert both["0.099999"]["iterations"] == 0  # It starts at the previous solution.


def test_the_chosen_penalty_is_best_on_held_out_examples():
  x, y = examples()
  x = np.hstack([x, np.random.default_rng(1).normal(size=(90, 40)).astype(np.float32)])  # Noise.
  penalties = (1e-4, 1e-2, 1e-1, 10.0)
  fit = Lbfgs(penalties=penalties).fit(x, y, 3, make_mesh(devices=jax.devices()[:1]))
  held = held_out(90, 0.1, 0)
  standard = (x - x.mean(0)) / (x.std(0) + 1e-5)
  top1 = {}
  for penalty in penalties:
    kept = standard[~held]
    spread = np.vstack([kept, np.zeros((0, 44))])
    theta = minimum(spread, y[~held], penalty)
    top1[penalty] = 100 * np.mean((standard[held] @ theta[:-1] + theta[-1]).argmax(1) == y[held])
  for penalty in penalties:
    assert fit.detail["tried"][f"{penalty:g}"]["validation_top1"] == pytest.approx(
      top1[penalty], abs=100 / 9 + 0.1
    )  # Rounding may change the class of one example.
  best = max(v["validation_top1"] for v in fit.detail["tried"].values())
  assert fit.detail["penalty"] == max(
    p for p in penalties if fit.detail["tried"][f"{p:g}"]["validation_top1"] == best
  )
  assert fit.detail["converged"]


def minimum(x, y, penalty, C=3):
  """Minimises the same loss by plain gradient descent, without standardising the features."""
  x = np.hstack([x, np.ones((len(x), 1))])
  theta, shrink = np.zeros((x.shape[1], C)), np.r_[np.ones(x.shape[1] - 1), 0][:, None] * penalty
  rate = 1 / (np.linalg.norm(x, 2) ** 2 / len(x) / 2 + penalty)
  for _ in range(3000):
    theta -= rate * (x.T @ (softmax(x @ theta) - np.eye(C)[y]) / len(x) + shrink * theta)
  return theta


def test_a_fit_with_too_few_iterations_has_not_converged():
  x, y = examples()
  fit = Lbfgs(penalties=(1e-6,), iterations=3, tolerance=1e-9).fit(
    x, y, 3, make_mesh(devices=jax.devices()[:1])
  )
  assert not fit.detail["converged"] and fit.detail["iterations"] == 3


def test_sgd_agrees_with_a_loop():
  x, y = examples(n=50)
  solver = Sgd(rates=(0.05, 0.5), epochs=3, batch_size=16)
  fit = solver.fit(x, y, 3, make_mesh())
  standard = (x - x.mean(0)) / (x.std(0) + 1e-5)

  def train(of, rate):
    rng = np.random.default_rng(0)
    w, b = np.zeros((4, 3)), np.zeros(3)
    moving, step, steps = [0, 0], 0, 3 * (len(of) // 16)
    for _ in range(3):
      order = rng.permutation(of)
      for start in range(0, len(of) - 15, 16):
        at = order[start : start + 16]
        wrong = (softmax(standard[at] @ w + b) - np.eye(3)[y[at]]) / 16
        moving = [0.9 * moving[0] + standard[at].T @ wrong, 0.9 * moving[1] + wrong.sum(0)]
        now = rate * (1 + np.cos(np.pi * step / steps)) / 2
        w, b, step = w - now * moving[0], b - now * moving[1], step + 1
    return w, b

  held = held_out(50, 0.1, 0)
  for rate in solver.rates:
    w, b = train(np.flatnonzero(~held), rate)
    assert fit.detail["tried"][f"{rate:g}"] == pytest.approx(
      100 * np.mean((standard[held] @ w + b).argmax(1) == y[held])
    )
  w, b = train(np.arange(50), fit.detail["rate"])
  np.testing.assert_allclose(fit.w, w, atol=1e-4)
  np.testing.assert_allclose(fit.b, b, atol=1e-4)


@pytest.mark.parametrize(
  "n, share, count", [(100, 0.1, 10), (3, 0.1, 1), (2, 0.9, 1), (10, 0.99, 9)]
)
def test_at_least_one_and_never_all_examples_are_held_out(n, share, count):
  assert held_out(n, share, 0).sum() == count


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Lbfgs(penalties=()), r"penalties is \(\);.* above 0"),
    (lambda: Sgd(rates=(0.1, 0)), r"rates is \(0.1, 0\);.* above 0"),
    (lambda: Lbfgs(validation=1.0), "validation is 1.0;.* above 0 and below 1"),
  ],
)
def test_an_invalid_sweep_is_an_error(make, message):
  with pytest.raises(UserError, match=message):
    make()
