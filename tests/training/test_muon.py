"""Muon against its formula in NumPy, one block and one matrix at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.errors import UserError
from clip_jax.parallel import mesh as mesh_lib, partition
from clip_jax.training.muon import matrix_axes, muon

STEPS = 3
A, B, C = 3.4445, -4.7750, 2.0315  # Jordan's coefficients of the Newton-Schulz iteration.


def halving(step):
  return 0.5 ** jnp.asarray(step, jnp.float32)


def trees():
  """Parameters, and their gradients in each step."""
  rng = np.random.default_rng(0)

  def tree(_):
    normal = lambda *shape: np.float32(rng.normal(size=shape))
    blocks = {
      "attention": {
        "qkv": {"kernel": normal(2, 8, 3, 2, 4), "bias": normal(2, 3, 2, 4)},
        "out": {"kernel": normal(2, 2, 4, 8)},
      },
      "mlp": {"up": {"kernel": normal(2, 8, 12)}},
    }
    return {
      "model": {"image": {"embedding": {"kernel": normal(6, 8)}, "stack": {"blocks": blocks}}},
      "objective": {"head": {"kernel": normal(8, 5)}},
    }

  return tree(0), [tree(t) for t in range(STEPS)]


def orthogonal(x):
  """Moves the singular values of a matrix close to 1."""
  x = x / np.linalg.norm(x)
  for _ in range(5):
    s = x @ x.T
    x = A * x + (B * s + C * s @ s) @ x
  return x


def muon_by_hand(p, gradients, wd=0.2, lr=1e-2, momentum=0.95):
  m = np.zeros_like(p)
  for t, g in enumerate(gradients, start=1):
    m = momentum * m + (1 - momentum) * g
    ahead = momentum * m / (1 - momentum ** (t + 1)) + (1 - momentum) * g / (1 - momentum**t)
    update = 0.2 * np.sqrt(max(p.shape)) * orthogonal(ahead)
    p = p - lr * 0.5 ** (t - 1) * (update + wd * p)
  return p


def adamw_by_hand(p, gradients, decay, lr=1e-2, b1=0.9, b2=0.98, eps=1e-6):
  m = v = np.zeros_like(p)
  for t, g in enumerate(gradients, start=1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    p = p - lr * 0.5 ** (t - 1) * (update + 0.2 * decay * p)
  return p


def updated(params, gradients, place=lambda tree: tree):
  optimizer = muon(learning_rate=1e-2, schedule=halving)
  params = place(params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for g in gradients:
    updates, state = update(place(g), state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_matrices_are_orthogonalised_apart_and_the_rest_is_under_adamw():
  params, gradients = trees()
  found = updated(params, gradients)
  get = lambda tree: tree["model"]["image"]["stack"]["blocks"]
  every = []
  cut = lambda f: (f(get(params)), [f(get(g)) for g in gradients], f(get(found)))
  for block in range(2):
    every += [
      cut(lambda b, i=i: np.float64(b["attention"]["qkv"]["kernel"][block, :, i]).reshape(8, 8))
      for i in range(3)
    ]
    every.append(cut(lambda b: np.float64(b["attention"]["out"]["kernel"][block]).reshape(8, 8)))
    every.append(cut(lambda b: np.float64(b["mlp"]["up"]["kernel"][block])))
  for p, g, new in every:
    np.testing.assert_allclose(new, muon_by_hand(p, g), rtol=1e-4, atol=1e-5)
  for pick, decay in (
    (lambda t: t["model"]["image"]["embedding"]["kernel"], True),
    (lambda t: t["objective"]["head"]["kernel"], True),
    (lambda t: get(t)["attention"]["qkv"]["bias"], False),
  ):
    p, g = np.float64(pick(params)), [np.float64(pick(g)) for g in gradients]
    np.testing.assert_allclose(pick(found), adamw_by_hand(p, g, decay), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sharded_and_unsharded_updates_are_the_same():
  params, gradients = trees()
  mesh = mesh_lib.make_mesh(1, 4, 2)
  place = lambda tree: jax.device_put(tree, partition.state_shardings(tree, mesh, min_size=16))
  for one, other in zip(
    jax.tree.leaves(updated(params, gradients, place)),
    jax.tree.leaves(updated(params, gradients)),
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "name, shape, axes",
  [
    ("model/image/stack/blocks/mlp/up/kernel", (2, 8, 32), ((1,), (2,))),
    ("model/image/stages/0/blocks/1/conv/kernel", (3, 3, 8, 16), ((0, 1, 2), (3,))),
    ("model/image/head/key_value/kernel", (8, 2, 2, 4), ((0,), (2, 3))),
    ("model/image/head/query/kernel", (8, 2, 4), ((0,), (1, 2))),
    ("model/image/conv/kernel", (7, 7, 1, 16), None),  # Depthwise.
    ("model/image/stack/blocks/norm/scale", (2, 8), None),
    ("model/text/embedding", (64, 8), None),
    ("model/image/embedding/kernel", (12, 8), None),
    ("kernel", (8, 4), ((0,), (1,))),
  ],
)
def test_the_axes_of_a_matrix_follow_from_its_name(name, shape, axes):
  assert matrix_axes(name, shape, (".*/embedding/.*",)) == axes


def test_patterns_that_leave_no_matrix_are_an_error():
  optimizer = muon(learning_rate=0.1, schedule=halving, adamw_params=(".*",), weight_decay=0.0)
  with pytest.raises(UserError, match="no matrix to update"):
    optimizer.init(trees()[0])
