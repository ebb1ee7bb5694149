"""SLIP's loss, head and views, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call, from_json, to_json
from clip_jax.errors import UserError
from clip_jax.model.learner import param_bounds, split_state
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.flip import flip
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.towers.resnet import BitResnet
from clip_jax.training import setup as setup_lib
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_constant
from run_config import get_config
from tiny import batch, learner

SMALL = dict(projection_hidden_dim=12, outputs=6, dtype="float32")
B = 8


@pytest.fixture(scope="module")
def slip():
  """A learner, and the embeddings of a batch by its objective."""
  made = learner(call(Slip, ssl_weight=0.7, **SMALL))
  return made, made.objective.embed(made.model, batch(B), train=True, key=None)


def head_by_loops(head, features, *, fresh=False):
  """The head in NumPy: twice linear, BatchNorm and ReLU; then linear.

  `fresh` normalises with the initial running averages, mean 0 and variance 1, not with the batch's.
  """
  x = np.asarray(features, np.float64)
  for i, layer in enumerate(head.layers):
    x = x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
    if i < 2:
      for channel in range(x.shape[1]):
        column = x[:, channel]
        mean, variance = (0, 1) if fresh else (column.mean(), column.var())
        x[:, channel] = np.maximum(0, (column - mean) / np.sqrt(variance + 1e-5))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def simclr_by_loops(z_a, z_b, temperature):
  """SLIP's cross-entropies over [all of the other view, the others of the own view], by rows."""
  total = []
  for x, y in ((z_a, z_b), (z_b, z_a)):
    for i in range(len(x)):
      candidates = [x[i] @ y[j] / temperature for j in range(len(y))]
      candidates += [x[i] @ x[j] / temperature for j in range(len(x)) if j != i]
      total.append(np.log(np.exp(candidates).sum()) - candidates[i])
  return np.mean(total)


def test_loss_is_clips_plus_the_weighted_loss_of_the_head(slip):
  made, z = slip
  loss, metrics = made.objective.loss(z, train=True)
  z_a, z_b = (head_by_loops(made.objective.head, z[view]) for view in ("view_a", "view_b"))
  np.testing.assert_allclose(metrics["ssl/loss"], simclr_by_loops(z_a, z_b, 0.1), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["pairs/loss"], made.objective.pairs.loss(z, train=True)[0], rtol=1e-6
  )
  np.testing.assert_allclose(loss, metrics["pairs/loss"] + 0.7 * metrics["ssl/loss"], rtol=1e-6)
  assert {"ssl/accuracy", "clip/logit_scale"} <= set(metrics)


def test_head_takes_features_before_the_projection(slip):
  made, z = slip
  assert z["view_a"].shape == z["view_b"].shape == (B, made.model.image.width)
  np.testing.assert_allclose(z["view_a"], made.model.image_features(batch(B)["view_a"]), atol=1e-5)


def test_running_averages_converge_to_those_of_both_views():
  made = learner(call(Slip, **SMALL))
  rng = np.random.default_rng(0)
  z = made.objective.embed(made.model, batch(B), train=True, key=None)
  views = [rng.normal(2.0, 3.0, (B, z["view_a"].shape[1])).astype(np.float32) for _ in range(2)]
  made.objective.loss({**z, "view_a": views[0], "view_b": views[1]}, train=True)
  layer, norm = made.objective.head.layers[0], made.objective.head.norms[0]
  mean, variance = 0.0, 1.0
  for view in views:
    x = view @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0, ddof=1)
  np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-4)
  for _ in range(150):  # The running averages converge to the statistics of both views.
    for view in views:
      made.objective.head(view, train=True)
  both = np.concatenate(views)
  np.testing.assert_allclose(
    made.objective.head(both, train=False)[:3],
    made.objective.head(both, train=True)[:3],
    rtol=0.3,
    atol=0.3,
  )


def test_loss_outside_of_training_uses_the_running_averages():
  made = learner(call(Slip, **SMALL))
  z = made.objective.embed(made.model, batch(B), train=False, key=None)
  before = split_state(made)[2]
  _, metrics = made.objective.loss(z, train=False)
  after = split_state(made)[2]
  jax.tree.map(np.testing.assert_array_equal, after, before)
  # The averages still have their initial values, mean 0 and variance 1.
  z_a, z_b = (head_by_loops(made.objective.head, z[v], fresh=True) for v in ("view_a", "view_b"))
  np.testing.assert_allclose(metrics["ssl/loss"], simclr_by_loops(z_a, z_b, 0.1), rtol=1e-4)


def test_views_and_pairs_drop_their_own_patches():
  made = learner(call(Slip, pairs=call(flip), keep_patches=0.5, **SMALL))
  data, key = batch(B), jax.random.split(jax.random.key(1), B)
  data["view_b"] = data["view_a"]
  z = made.objective.embed(made.model, data, train=True, key=key)
  alone = learner(call(flip)).objective.embed(made.model, data, train=True, key=key)
  np.testing.assert_allclose(z["image"], alone["image"], atol=1e-6)
  assert np.abs(z["view_a"] - z["view_b"]).max() > 1e-3  # One image, two masks.
  whole = made.objective.embed(made.model, data, train=False, key=None)
  np.testing.assert_allclose(whole["view_a"], whole["view_b"], atol=1e-6)


def test_initial_values_and_bounds_are_those_of_the_papers():
  starts = {
    "clip": (call(Clip), {"log_scale": (np.log(1 / 0.07), 0.0, np.log(100))}),
    "flip": (call(flip), {"log_scale": (np.log(1 / 0.07), 0.0, np.log(100))}),
    "siglip": (
      call(Siglip),
      {"log_scale": (np.log(10), -np.inf, np.inf), "bias": (-10.0, -np.inf, np.inf)},
    ),
    "open_clip's siglip": (
      call(Siglip, max_scale=100.0),
      {"log_scale": (np.log(10), 0.0, np.log(100)), "bias": (-10.0, -np.inf, np.inf)},
    ),
  }
  for name, (objective, scalars) in starts.items():
    made = build(objective)
    limits = param_bounds(made)
    assert split_state(made)[1].keys() == scalars.keys(), name
    for scalar, (start, low, high) in scalars.items():
      np.testing.assert_allclose(getattr(made, scalar)[...], start, rtol=1e-6)
      np.testing.assert_allclose(limits[scalar], (low, high), rtol=1e-6)


def test_weight_decay_applies_only_to_the_heads_kernels():
  made = learner(call(Slip, pairs=call(Siglip), **SMALL))
  _, params, _ = split_state(made)
  optimizer = adamw(
    learning_rate=1.0, schedule=warmup_constant(warmup=0, total_steps=9), weight_decay=0.1
  )
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(nothing, optimizer.init(params), params)
  moved = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, x in jax.tree_util.tree_leaves_with_path(updates["objective"])
    if x.any()
  }
  assert moved == {f"head/layers/{i}/kernel" for i in range(3)}


def test_config_round_trip_keeps_the_pair_objective():
  config = call(
    Slip, pairs=call(Siglip, keep_patches=0.5), ssl_weight=0.5, projection_hidden_dim=8, outputs=4
  )
  made = learner(from_json(to_json(config)))
  assert made.objective.inputs == ("image", "tokens", "view_a", "view_b")
  assert isinstance(made.objective.pairs, Siglip) and made.objective.pairs.keep_patches == 0.5
  scale, bias = made.objective.logit()
  np.testing.assert_allclose((scale, bias), (10, -10), rtol=1e-6)


def test_pipeline_without_the_views_is_an_error():
  config = get_config()
  config.objective = call(Slip, **SMALL)
  with pytest.raises(
    UserError,
    match="Slip reads image, tokens, view_a, view_b, .* only image, tokens.* view_a, view_b",
  ):
    setup_lib.build_setup(config)


@pytest.mark.parametrize(
  "make", [Clip, flip, Siglip, lambda **share: learner(call(Slip, **SMALL, **share))]
)
def test_percentage_of_patches_is_an_error(make):
  for share in (50, 0, -0.5):
    with pytest.raises(
      UserError, match=f"keep_patches is {share}; .* expects a number above 0 and at most 1"
    ):
      make(keep_patches=share)


@pytest.mark.parametrize(
  "objective", [call(flip), call(Siglip, keep_patches=0.5), call(Slip, keep_patches=0.5, **SMALL)]
)
def test_tower_without_patches_is_an_error(objective):
  resnet = call(
    BitResnet,
    stages=(1,),
    width=8,
    block="basic",
    stem="small",
    groups=4,
    image_size=16,
    dtype="float32",
  )
  made = learner(objective, image=resnet)
  with pytest.raises(
    UserError,
    match="keep=0.5 drops patches, but a ResNet has none. Set the "
    "objective's keep_patches=1, or train a Vit",
  ):
    jax.eval_shape(
      lambda: made.objective.embed(
        made.model, batch(2), train=True, key=jax.random.split(jax.random.key(0), 2)
      )
    )
