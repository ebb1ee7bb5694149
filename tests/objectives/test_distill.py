"""Distillation against its formulas, in chunks, microbatches and with another teacher's width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import losses
from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.objectives.distill import Distill
from clip_jax.training import state as state_lib, step as step_lib
from tiny import batch, largest_difference, learner

B, E = 8, 12


def unit(seed, width=E, rows=B):
  x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def kl_by_hand(a, b, scale, t_a, t_b, t_scale, own=True):
  total = 0.0
  for i in range(len(a)):
    js = [j for j in range(len(a)) if own or j != i]
    p, q = (
      np.exp(s * np.array([x[i] @ y[j] for j in js], np.float64))
      for s, x, y in ((t_scale, t_a, t_b), (scale, a, b))
    )
    p, q = p / p.sum(), q / q.sum()
    total += (p * np.log(p / q)).sum()
  return total / len(a)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_relations_match_a_loop(own, chunk_size):
  arrays = unit(0), unit(1), 3.0, unit(2, 5), unit(3, 5), 7.0
  found = losses.relation_kl(*arrays, chunk_size=chunk_size, include_own=own)
  assert float(found) == pytest.approx(kl_by_hand(*arrays, own=own), rel=1e-5)
  same = losses.relation_kl(arrays[0], arrays[1], 3.0, arrays[0], arrays[1], 3.0)
  assert float(same) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms():
  weights = dict(pairs_weight=0.5, feature_weight=2.0, logit_weight=3.0, affinity_weight=4.0)
  made = learner(call(Distill, teacher_dim=5, teacher_scale=7.0, **weights)).objective
  z = {"image": unit(0, 16), "text": unit(1, 16)}
  teacher = {"teacher_image": unit(2, 5), "teacher_text": unit(3, 5)}
  total, metrics = made.loss({**z, **teacher}, train=True)
  s, t = float(made.logit()[0]), teacher
  expected = {
    "logit": (
      kl_by_hand(z["image"], z["text"], s, t["teacher_image"], t["teacher_text"], 7.0)
      + kl_by_hand(z["text"], z["image"], s, t["teacher_text"], t["teacher_image"], 7.0)
    )
    / 2,
    "affinity": (
      kl_by_hand(z["image"], z["image"], s, t["teacher_image"], t["teacher_image"], 7.0, own=False)
      + kl_by_hand(z["text"], z["text"], s, t["teacher_text"], t["teacher_text"], 7.0, own=False)
    )
    / 2,
    "feature": sum(
      np.square(z[n] @ np.asarray(layer.kernel[...]) - t[f"teacher_{n}"]).sum(1).mean()
      for n, layer in zip(("image", "text"), made.to_teacher)
    ),
  }
  for name, value in expected.items():
    assert float(metrics[f"distill/{name}"]) == pytest.approx(value, rel=1e-4), name
  pairs = float(metrics["pairs/loss"])
  assert pairs == pytest.approx(float(losses.info_nce(z["image"], z["text"], s)), rel=1e-5)
  expected = 0.5 * pairs + sum(weights[f"{n}_weight"] * x for n, x in expected.items())
  assert float(total) == pytest.approx(expected, rel=1e-5)


def test_microbatches_and_chunks_leave_the_gradient_unchanged():
  """The gradient, by the parameters of the towers and of the maps to the teacher's space."""
  data = {**batch(B), "teacher_image": unit(2, 5), "teacher_text": unit(3, 5)}
  found = []
  for microbatches, chunk_size in ((1, None), (4, 2)):
    spec = call(
      Distill, teacher_dim=5, feature_weight=1.0, affinity_weight=1.0, chunk_size=chunk_size
    )
    graphdef, params, stats = split_state(learner(spec))
    state = state_lib.TrainState(jnp.int32(0), params, stats, (), jnp.int32(0))
    gradients = step_lib.make_gradients(graphdef, seed=0, microbatches=microbatches)
    found.append(jax.jit(gradients)(state, data)[-1])
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[0]))
  assert largest_difference(*found) < 1e-5 * largest


def test_mistakes_are_explained():
  with pytest.raises(UserError, match="Distill without a term"):
    learner(call(Distill, teacher_dim=5, logit_weight=0.0))
  made = learner(call(Distill, teacher_dim=6))
  data = {**batch(2), "teacher_image": unit(2, 5, 2), "teacher_text": unit(3, 5, 2)}
  with pytest.raises(UserError, match="have 5 entries, but objective.teacher_dim=6"):
    made.objective.embed(made.model, data, train=False, key=None)
