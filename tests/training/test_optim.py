"""Optimizers against NumPy implementations, and schedules at known points."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import build, call, from_json, to_json
from clip_jax.errors import UserError
from clip_jax.model.frozen import split_frozen
from clip_jax.training.optim import adamw, scaling_vit_adafactor, with_bounds
from clip_jax.training.schedules import warmup_constant, warmup_cosine, warmup_rsqrt

OPTIMIZERS = {"adamw": adamw, "scaling_vit_adafactor": scaling_vit_adafactor}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
flat = lambda step: jnp.float32(1.0)


def halving(step):
  return 0.5 ** jnp.asarray(step, jnp.float32)


def parameters(seed=0):
  """Parameters like a model's: three stacked blocks, a norm, an embedding, a scalar."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    "model": {
      "image": {
        "positions": normal(40, 48),
        "stack": {
          "blocks": {
            "attention": {"qkv": {"kernel": normal(3, 48, 3, 2, 32), "bias": normal(3, 3, 2, 32)}},
            "mlp": {"kernel": normal(3, 48, 64), "bias": normal(3, 64)},
            "norm": {"scale": normal(3, 48)},
          }
        },
      },
      "text": {"embedding": normal(100, 48), "projection": {"kernel": normal(48, 16)}},
    },
    "objective": {"log_scale": normal()},
  }


def updated(optimizer, params, gradients):
  """Returns the parameters after one update for each tree of gradients."""
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for g in gradients:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


def by_name(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_close(actual, expected, **tolerance):
  actual, expected = by_name(actual), by_name(expected)
  assert actual.keys() == expected.keys()
  for name in actual:
    np.testing.assert_allclose(actual[name], expected[name], err_msg=name, **tolerance)


def adamw_by_hand(p, gradients, *, decay, lr=1e-2, b1=0.9, b2=0.98, eps=1e-6, wd=0.2):
  m = v = np.zeros_like(p)
  for t, g in enumerate(gradients, start=1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    direction = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    p = p - 0.5 ** (t - 1) * lr * (direction + (wd * p if decay else 0))
  return p


def adafactor_by_hand(p, gradients, *, decay, lr=1e-2, wd=0.1, cap=0.999, dtype="float32"):
  """Updates a parameter of one block; v is reconstructed from its row and column means."""
  axes = np.argsort(p.shape, kind="stable")[-2:]
  factored = p.ndim >= 2 and p.shape[axes[0]] >= 32
  m, v, row, column = (np.zeros_like(p) for _ in range(4))
  for t, g in enumerate(gradients, start=1):
    b2 = min(cap, 1 - t**-0.8)
    v = b2 * v + (1 - b2) * (g**2 + 1e-30)
    if factored:
      row, column = (v.mean(axis=int(a), keepdims=True) for a in axes)
      root = np.sqrt(row * column / v.mean(axis=tuple(map(int, axes)), keepdims=True))
    else:
      root = np.sqrt(v)
    m = 0.9 * m.astype(dtype).astype(np.float64) + 0.1 * g / root
    p = p - 0.5 ** (t - 1) * (lr * m + (wd * p if decay else 0))
  return p


@pytest.fixture(scope="module")
def trajectory():
  """Parameters and four gradients with very unequal rows, so that factoring matters."""

  def gradient(seed):
    rng = np.random.default_rng(100 + seed)
    return jax.tree.map(
      lambda x: (x * np.exp(rng.normal(size=x.shape[:-1] + (1,) * (x.ndim > 0)))).astype(
        np.float32
      ),
      parameters(seed + 1),
    )

  return parameters(), [gradient(i) for i in range(4)]


def test_adamw_matches_the_published_algorithm(trajectory):
  params, gradients = trajectory
  actual = updated(adamw(learning_rate=1e-2, schedule=halving), params, gradients)
  p, gs = by_name(params), [by_name(g) for g in gradients]
  for name, value in by_name(actual).items():
    expected = adamw_by_hand(
      p[name], [g[name] for g in gs], decay=name.endswith(("/kernel", "/embedding"))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)


# A momentum that rounds the other way in bfloat16 is off by 0.4%.
@pytest.mark.parametrize(
  "cap, dtype, atol", [(0.999, "float32", 1e-6), (0.3, "float32", 1e-6), (0.999, "bfloat16", 1e-4)]
)
def test_adafactor_matches_its_docstring_for_each_block(trajectory, cap, dtype, atol):
  params, gradients = trajectory
  actual = updated(
    scaling_vit_adafactor(
      learning_rate=1e-2, schedule=halving, weight_decay=0.1, b2_cap=cap, momentum_dtype=dtype
    ),
    params,
    gradients,
  )
  p, gs = by_name(params), [by_name(g) for g in gradients]
  for name, value in by_name(actual).items():
    hand = functools.partial(
      adafactor_by_hand, decay=name.endswith("/kernel"), cap=cap, dtype=dtype
    )
    if "/blocks/" in name:
      expected = [hand(p[name][i], [g[name][i] for g in gs]) for i in range(3)]
    else:
      expected = hand(p[name], [g[name] for g in gs])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=atol, err_msg=name)


@every_optimizer
def test_stacked_and_separate_blocks_get_the_same_updates(name, trajectory):
  params, gradients = trajectory

  def apart(tree):
    """Returns the tree with the stack replaced by a list of blocks."""
    blocks = tree["model"]["image"]["stack"]["blocks"]
    return {
      "model": {
        "image": {"stack": {"blocks": [jax.tree.map(lambda x: x[i], blocks) for i in range(3)]}}
      }
    }

  optimizer = OPTIMIZERS[name](learning_rate=1e-2, schedule=flat, momentum_dtype="float32")
  together = updated(optimizer, params, gradients)
  assert_close(
    apart(together),
    updated(optimizer, apart(params), [apart(g) for g in gradients]),
    rtol=1e-6,
    atol=1e-6,
  )


def test_adafactor_state_is_half_the_parameters_and_not_factored_over_depth():
  params = jax.tree.map(
    jnp.asarray,
    {"blocks": {"up": {"kernel": np.zeros((12, 256, 512))}, "up_bias": np.zeros((64, 512))}},
  )
  state = scaling_vit_adafactor(learning_rate=1.0, schedule=flat).init(params)
  shapes = by_name(jax.tree.map(lambda x: np.array(x.shape), state))
  of = lambda end: next(tuple(map(int, s)) for n, s in shapes.items() if n.endswith(end))
  assert of("kernel/row") == (12, 256) and of("kernel/column") == (12, 512)
  assert of("up_bias/whole") == (64, 512)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  del params["blocks"]["up_bias"]
  small = scaling_vit_adafactor(learning_rate=1.0, schedule=flat).init(params)
  assert size(small) < 0.52 * size(params)


@every_optimizer
def test_zero_gradient_gives_a_finite_update(name):
  params = {"kernel": jnp.ones((40, 40))}
  optimizer = OPTIMIZERS[name](learning_rate=1.0, schedule=flat, weight_decay=0.0)
  assert_close(updated(optimizer, params, [jax.tree.map(jnp.zeros_like, params)] * 2), params)


@every_optimizer
def test_only_parameters_that_match_a_pattern_decay(name):
  params = jax.tree.map(jnp.ones_like, parameters())
  zero = jax.tree.map(jnp.zeros_like, params)
  rate = {"adamw": 0.5, "scaling_vit_adafactor": 1.0}[name]  # AdamW multiplies decay by its rate.

  def decayed(**changes):
    optimizer = OPTIMIZERS[name](learning_rate=0.5, schedule=flat, weight_decay=0.1, **changes)
    after = by_name(updated(optimizer, params, [zero]))
    assert {round(float(x.flat[0]), 6) for x in after.values()} <= {1.0, 1 - rate * 0.1}
    return {n for n, x in after.items() if x.flat[0] != 1}

  kernels = {
    "model/image/stack/blocks/attention/qkv/kernel",
    "model/image/stack/blocks/mlp/kernel",
    "model/text/projection/kernel",
  }
  assert decayed() == kernels | ({"model/text/embedding"} if name == "adamw" else set())
  assert decayed(decay_params=("model/text/.*",)) == {
    "model/text/embedding",
    "model/text/projection/kernel",
  }


@every_optimizer
def test_frozen_parameters_do_not_change_and_have_no_state(name, trajectory):
  params, _gradients = trajectory
  optimizer = OPTIMIZERS[name](learning_rate=0.1, schedule=flat, freeze_params=("model/image/.*",))
  image = {name for name in by_name(params) if name.startswith("model/image")}
  assert set(optimizer.frozen(params)) == image
  names = by_name(optimizer.init(params))
  assert any("text/embedding" in n for n in names) and not any("image" in n for n in names)


@every_optimizer
def test_frozen_parameters_do_not_affect_the_others(name, trajectory):
  """In particular, `clip` applies to the norm of the gradients that are used."""
  params, gradients = trajectory
  text = lambda tree: {"model": {"text": tree["model"]["text"]}}
  make = functools.partial(
    OPTIMIZERS[name], learning_rate=0.1, schedule=halving, grad_clip_norm=1.0
  )
  optimizer, after = make(freeze_params=("model/image/.*", "objective/.*")), params
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for gradient in gradients:
    trained = text(after)
    updates, state = update(text(gradient), state, trained)
    after = {"model": optax.apply_updates(trained, updates)["model"]}
  assert_close(text(after), updated(make(), text(params), [text(g) for g in gradients]), rtol=1e-6)


def first_update(**changes):
  """One update of all parameters by gradients of 1, by name."""
  params = parameters()
  optimizer = adamw(learning_rate=0.5, schedule=flat, weight_decay=0.0, **changes)
  ones = jax.tree.map(jnp.ones_like, split_frozen(params, optimizer.frozen(params))[0])
  return by_name(optimizer.update(ones, optimizer.init(params), ones)[0])


def test_the_learning_rate_decays_from_layer_to_layer():
  """Block i of three has decay^(3 - i), what comes before decay^4, and the rest 1 (BEiT)."""
  params = parameters()
  params["model"] = {"image": params["model"]["image"], "image_projection": jnp.ones(2)}
  make = functools.partial(adamw, learning_rate=0.5, schedule=flat, weight_decay=0.0)
  ones = jax.tree.map(jnp.ones_like, params)

  def update(**changes):
    optimizer = make(**changes)
    return by_name(optimizer.update(ones, optimizer.init(params), ones)[0])

  plain, decayed = update(), update(layer_decay=0.5)
  for name, x in decayed.items():
    ratio = np.asarray(x / plain[name])
    if "blocks" in name:
      assert [float(r.max()) for r in ratio] == [0.125, 0.25, 0.5] and np.ptp(ratio[0]) == 0
    else:
      assert float(ratio.max()) == (0.0625 if "positions" in name else 1), name


def test_multipliers_of_the_learning_rate_go_by_the_first_pattern_that_matches():
  plain = first_update()
  changed = first_update(lr_multipliers=(("model/image/stack/.*", 0.5), ("model/.*", 4.0)))
  for name, x in changed.items():
    ratio = float((x / plain[name]).max())
    image = name.startswith("model/image/stack")
    assert ratio == (0.5 if image else 4 if name.startswith("model/") else 1), name


def test_the_last_blocks_and_what_follows_stay_trained():
  params = parameters()
  optimizer = adamw(
    learning_rate=1.0, schedule=flat, freeze_params=("model/image/.*",), unlock_blocks=1
  )
  frozen = optimizer.frozen(params)
  assert frozen["model/image/positions"] is None
  assert {k for n, k in frozen.items() if "blocks" in n} == {2}
  updates = first_update(freeze_params=("model/image/.*",), unlock_blocks=1)
  assert {len(x) for n, x in updates.items() if "blocks" in n} == {1}
  assert "model/image/positions" not in updates and "model/text/embedding" in updates


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(unlock_blocks=1), "unlock_blocks=1 needs freeze_params"),
    (dict(unlock_blocks=4, freeze_params=("model/image/.*",)), "image has only 3 blocks"),
    (dict(unlock_blocks=1, freeze_params=("model/text/.*",)), "needs a tower with a stack"),
    (dict(layer_decay=0.5), "model/text has none. Use lr_multipliers"),
    (dict(lr_multipliers=(("image", 2.0),)), "pattern 'image' matches no parameter.*model/image/p"),
  ],
)
def test_groups_that_do_not_fit_the_model_are_errors(changes, message):
  with pytest.raises(UserError, match=message):
    first_update(**changes)


@every_optimizer
def test_gradients_are_clipped_to_the_maximum_norm(name):
  params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(3)}
  rng = np.random.default_rng(0)
  unequal = [
    jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * s, params)
    for s in (100, 0.001)
  ]
  norm = lambda g: math.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in g.values()))
  cut = [jax.tree.map(lambda x: x * min(1, 0.5 / norm(g)), g) for g in unequal]
  make = functools.partial(
    OPTIMIZERS[name], learning_rate=0.1, schedule=flat, decay_params=("kernel",)
  )
  assert_close(
    updated(make(grad_clip_norm=0.5), params, unequal), updated(make(), params, cut), rtol=1e-5
  )


@every_optimizer
def test_optimizer_exposes_its_learning_rate(name):
  optimizer = OPTIMIZERS[name](learning_rate=0.3, schedule=halving)
  np.testing.assert_allclose(
    [optimizer.learning_rate(i) for i in (0, 1, 3)], [0.3, 0.15, 0.0375], rtol=1e-6
  )
  assert with_bounds(optimizer, {}).learning_rate is optimizer.learning_rate


@every_optimizer
def test_optimizer_is_built_from_a_config_with_the_length_of_the_run(name):
  spec = call(OPTIMIZERS[name], learning_rate=0.2, schedule=call(warmup_cosine, warmup=0.1))
  optimizer = build(from_json(to_json(spec)), total_steps=100)
  np.testing.assert_allclose(
    [optimizer.learning_rate(i) for i in (0, 9, 55)], [0.02, 0.2, 0.1], rtol=1e-5
  )


@every_optimizer
def test_first_update_is_the_same_under_fsdp(name, trajectory):
  """The optimizer state is sharded like its parameters, on eight devices."""
  from clip_jax.parallel import mesh as mesh_lib, partition

  params, gradients = trajectory
  optimizer = OPTIMIZERS[name](learning_rate=0.1, schedule=flat)
  expected = updated(optimizer, params, gradients[:1])
  mesh = mesh_lib.make_mesh(1, 8)
  place = lambda tree: jax.device_put(tree, partition.state_shardings(tree, mesh, min_size=64))
  assert_close(
    updated(optimizer, place(params), [place(gradients[0])]), expected, rtol=1e-4, atol=1e-5
  )


# Schedules.


def values(schedule, *steps):
  return [float(schedule(jnp.int32(s))) for s in steps]


def test_warm_up_starts_above_zero_and_ends_at_the_peak():
  for make in (warmup_cosine, warmup_rsqrt, warmup_constant):
    schedule = make(warmup=4, total_steps=100)
    np.testing.assert_allclose(values(schedule, 0, 1, 2, 3, 4), [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_cosine_is_half_in_the_middle_and_almost_0_at_the_last_step():
  schedule = warmup_cosine(warmup=20, total_steps=100)
  np.testing.assert_allclose(
    values(schedule, 20, 40, 60, 80),
    [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2],
    rtol=1e-5,
  )
  assert 0 < values(schedule, 99)[0] < 0.001
  np.testing.assert_allclose(values(schedule, 100, 110), [0, 0], atol=1e-7)


def test_cosine_decays_to_end():
  schedule = warmup_cosine(warmup=20, total_steps=100, end=0.1)
  np.testing.assert_allclose(values(schedule, 9, 60, 100), [0.5, 0.55, 0.1], rtol=1e-5)


def test_rsqrt_falls_with_its_timescale_and_cools_down_at_the_end():
  schedule = warmup_rsqrt(warmup=10, total_steps=1000, timescale=100, cooldown=50)
  np.testing.assert_allclose(
    values(schedule, 10, 110, 310, 949, 950),
    [1, 0.5**0.5, 0.5, (1 + 9.39) ** -0.5, (1 + 9.4) ** -0.5],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    values(schedule, 975, 999, 1000),
    [0.5 * (1 + 9.65) ** -0.5, 0.02 * (1 + 9.89) ** -0.5, 0],
    rtol=1e-5,
  )


def test_constant_stays_and_cools_down_at_the_end():
  schedule = warmup_constant(warmup=10, total_steps=100, cooldown=20)
  np.testing.assert_allclose(values(schedule, 10, 80, 90, 99), [1, 1, 0.5, 0.05], rtol=1e-5)


def test_lengths_may_be_fractions_of_the_run():
  inside = (0, 3, 50, 149, 190, 199)
  for make, shares, steps in (
    (warmup_cosine, dict(warmup=0.1), dict(warmup=20)),
    (warmup_constant, dict(warmup=0.1, cooldown=0.25), dict(warmup=20, cooldown=50)),
    (warmup_rsqrt, dict(warmup=0.1, timescale=0.5), dict(warmup=20, timescale=100)),
  ):
    assert values(make(total_steps=200, **shares), *inside) == values(
      make(total_steps=200, **steps), *inside
    )


def test_schedule_without_warm_up_starts_at_the_peak():
  assert values(warmup_cosine(warmup=0, total_steps=10), 0) == [1]


def test_warm_up_that_is_negative_or_as_long_as_the_run_is_an_error():
  for make in (warmup_cosine, warmup_rsqrt, warmup_constant):
    for warmup in (-1, -0.5):
      with pytest.raises(UserError, match=f"warmup is {warmup}; .* expects a number of at least 0"):
        make(warmup=warmup, total_steps=100)
    for warmup in (100, 2000):
      with pytest.raises(
        UserError,
        match=rf"warmup {warmup} .* 100 steps\. .*fraction of the run, "
        r"as in warmup=0\.1",
      ):
        make(warmup=warmup, total_steps=100)


def test_cool_down_as_long_as_the_run_is_an_error():
  for make in (warmup_rsqrt, warmup_constant):
    with pytest.raises(UserError, match="cooldown 100 .* 100 steps"):
      make(warmup=0, cooldown=100, total_steps=100)


def test_timescale_of_0_is_an_error():
  with pytest.raises(UserError, match="timescale is 0; warmup_rsqrt expects a number above 0"):
    warmup_rsqrt(warmup=0, timescale=0, total_steps=100)


# Bounds.


def test_parameters_stop_at_their_bounds_and_can_move_back():
  bounds = {"scale": (0.0, math.log(100)), "kernel": (-math.inf, math.inf), "low": (-1.0, math.inf)}
  optimizer = with_bounds(optax.sgd(1.0), bounds)
  params = {"scale": jnp.float32(2.6592), "kernel": jnp.ones(2), "low": jnp.float32(0)}
  seen = []
  for push in (-3.0, -3.0, 0.5, 50.0, -0.25):
    gradient = {"scale": jnp.float32(push), "kernel": jnp.full(2, push), "low": jnp.float32(9.0)}
    params = updated(optimizer, params, [gradient])
    seen.append(float(params["scale"]))
  top = math.log(100)
  np.testing.assert_allclose(seen, [top, top, top - 0.5, 0, 0.25], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(params["kernel"], 1 - (-3 - 3 + 0.5 + 50 - 0.25))
  assert params["low"] == -1


def test_parameter_outside_its_bounds_is_moved_to_the_bound():
  optimizer = with_bounds(optax.sgd(1.0), [(0.0, 1.0)])
  np.testing.assert_allclose(
    updated(optimizer, [jnp.array([5.0, -5.0, 0.5])], [[jnp.zeros(3)]]), [[1, 0, 0.5]], atol=1e-6
  )


def test_crossed_bounds_are_an_error():
  with pytest.raises(UserError, match="objective/log_scale has at_least=2.0 above at_most=1.0"):
    with_bounds(optax.sgd(1.0), {"objective": {"log_scale": (2.0, 1.0)}})


# Errors of both optimizers.


@every_optimizer
def test_clip_of_0_is_an_error(name):
  with pytest.raises(UserError, match=f"grad_clip_norm is 0.0; {name} expects a number above 0"):
    OPTIMIZERS[name](learning_rate=1.0, schedule=flat, grad_clip_norm=0.0)


@every_optimizer
def test_invalid_pattern_is_an_error(name):
  for argument in ("decay_params", "freeze_params"):
    with pytest.raises(
      UserError,
      match=rf"{argument} is .*kernel.*; {name} expects a tuple, each entry a regular expr",
    ):
      OPTIMIZERS[name](learning_rate=1.0, schedule=flat, **{argument: ("*kernel",)})


@every_optimizer
def test_unmatched_pattern_error_lists_parameter_names(name):
  make = functools.partial(OPTIMIZERS[name], learning_rate=1.0, schedule=flat)
  with pytest.raises(
    UserError,
    match="freeze_params pattern 'image' matches no parameter. It must match a"
    " whole name, such as: model/image/positions, ",
  ):
    make(freeze_params=("image",)).init(parameters())
  with pytest.raises(
    UserError, match=r"None of the decay_params patterns \('kernel',\) matches a par"
  ):
    make(decay_params=("kernel",)).init(parameters())
  make(decay_params=("kernel",), weight_decay=0.0).init(parameters())


@every_optimizer
def test_freezing_everything_is_an_error(name):
  with pytest.raises(UserError, match=r"freeze_params patterns \('\.\*',\) match every parameter"):
    OPTIMIZERS[name](learning_rate=1.0, schedule=flat, freeze_params=(".*",)).init(parameters())
