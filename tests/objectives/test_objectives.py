"""Properties that hold for every objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import losses
from clip_jax.config import call
from clip_jax.costs.model_compute import count_compute
from clip_jax.model.learner import param_bounds, split_state
from clip_jax.model.two_towers import l2_normalize
from clip_jax.objectives.caption_groups import row_hashes
from clip_jax.objectives.captioner import Captioner
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.flip import flip
from clip_jax.objectives.global_clip import GlobalClip
from clip_jax.objectives.matryoshka import Matryoshka
from clip_jax.objectives.nuclr import Nuclr
from clip_jax.objectives.selected import Selected
from clip_jax.objectives.siglip import Siglip
from clip_jax.objectives.slip import Slip
from clip_jax.objectives.words import Words
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.hog import Hog
from clip_jax.training import state as state_lib, step as step_lib
from clip_jax.training.optim import with_bounds
from tiny import LENGTH, SIZE, VOCABULARY, batch, image_tower, largest_difference, learner

SMALL = dict(projection_hidden_dim=32, outputs=16, dtype="float32")
OBJECTIVES = {
  "captioner-of-words": call(
    Captioner, pairs=call(Words, dtype="float32"), depth=1, parallel=0.5, dtype="float32"
  ),
  "clip": call(Clip),
  "flip-grouped-blockwise": call(flip, chunk_size=4, same_caption="ignore"),
  "global": call(GlobalClip, version="v3", gamma=0.5, gamma_decay_epochs=1.0, examples=40),
  "global-own-temperatures-grouped-blockwise": call(
    GlobalClip, version="v2", chunk_size=4, same_caption="ignore", keep_patches=0.75, examples=40
  ),
  "nuclr": call(Nuclr, examples=40, temperature=0.1, popularity_start_epochs=0.0, chunk_size=4),
  "matryoshka": call(Matryoshka, dims=(8,), weights=(0.5,)),
  "selected": call(Selected, fraction=0.5, chunks=2, score="hard"),
  "siglip": call(Siglip),
  "words": call(Words, chunk_size=4, dtype="float32"),
  "siglip-masked-grouped-blockwise": call(
    Siglip, keep_patches=0.75, chunk_size=8, same_caption="ignore"
  ),
  "slip": call(Slip, **SMALL),
  "slip-masked-blockwise": call(
    Slip,
    pairs=call(Siglip, keep_patches=0.5, chunk_size=4),
    keep_patches=0.75,
    chunk_size=8,
    **SMALL,
  ),
}
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2)]  # data, fsdp, tensor
B = 16
SCALES = {Clip: dict(temperature=1 / 14.3), Siglip: dict(scale=10.0, bias=-10.0)}


def indexed(seed=0):
  """A batch with the indices of its records, some of which occur twice."""
  return {**batch(B, seed), "index": np.random.default_rng(seed).integers(0, 40, B)}


def repeated(K=1, seed=0):
  """A batch in which every caption occurs twice; with K captions per image, [B, K, L]."""
  data = indexed(seed)
  data["tokens"][B // 2 :] = data["tokens"][: B // 2]
  if K > 1:
    more = [batch(B, seed=seed + k)["tokens"] for k in range(1, K)]
    data["tokens"] = np.stack([data["tokens"], *more], 1)
  return data


def trained(objective, *, mesh=None, microbatches=1, steps=3, optimizer=None, data=None, **model):
  """The state and the losses after a few optimizer steps, on a mesh or on one device."""
  optimizer = optimizer or optax.sgd(0.1)
  made = learner(objective, **model)
  graphdef = split_state(made)[0]
  step = step_lib.make_train_step(graphdef, optimizer, seed=3, microbatches=microbatches)
  state = state_lib.init_train_state(made, optimizer)
  losses, fixed = [], data
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    state = jax.device_put(state, partition.state_shardings(state, mesh, min_size=64))
    step = jax.jit(step, donate_argnums=0)
    for i in range(steps):
      make = repeated if objective.get("same_caption", "negative") != "negative" else indexed
      data = make(seed=i) if fixed is None else fixed
      state, metrics = step(state, placement.to_global(data, placement.batch_sharding(mesh)))
      losses.append(float(metrics["loss"]))
  return jax.device_get(state), losses


SLOW = (
  "global-own-temperatures-grouped-blockwise",
  "slip-masked-blockwise",
  "words",
  "matryoshka",
  "captioner-of-words",
  "nuclr",
  "selected",
)
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OBJECTIVES]


@pytest.fixture(scope="module", params=NAMES)
def plain(request):
  """An objective, and the result of three plain steps on one device."""
  return OBJECTIVES[request.param], trained(OBJECTIVES[request.param])


def check_same(one, other):
  """Asserts that losses, parameters and running averages of two runs agree up to rounding."""
  (state, losses), (their_state, their_losses) = one, other
  np.testing.assert_allclose(their_losses, losses, rtol=1e-5)
  assert largest_difference(their_state.params, state.params) < 3e-6
  if state.stats:
    # Logarithms of normalisers, up to 14, multiply the rounding of a cosine by the scale.
    limit = 3e-5 if "per_example" in state.stats.get("objective", {}) else 4e-6
    assert largest_difference(their_state.stats, state.stats) < limit


def test_microbatches_match_one_batch(plain):
  objective, result = plain
  check_same(result, trained(objective, microbatches=4))


def test_eight_devices_match_one(plain):
  objective, result = plain
  check_same(result, trained(objective, mesh=mesh_lib.make_mesh(2, 2, 2)))


@pytest.mark.slow
def test_every_mesh_shape_matches_one_device():
  result = trained(OBJECTIVES["flip-grouped-blockwise"])
  for sizes in MESHES:
    check_same(
      result, trained(OBJECTIVES["flip-grouped-blockwise"], mesh=mesh_lib.make_mesh(*sizes))
    )


def test_towers_for_small_data_match_on_eight_devices():
  model = dict(
    image=call(ConcatTowers, towers=(image_tower(), call(Hog, image_size=SIZE))),
    text=call(BagOfTokens, vocab_size=VOCABULARY, context_length=LENGTH, width=32),
    image_projection="mlp",
    projection_hidden_dim=64,
  )
  check_same(
    trained(call(Clip), **model), trained(call(Clip), mesh=mesh_lib.make_mesh(2, 2, 2), **model)
  )


@pytest.mark.slow
def test_microbatches_on_eight_devices_match_one():
  objective = OBJECTIVES["slip-masked-blockwise"]
  check_same(trained(objective), trained(objective, mesh=mesh_lib.make_mesh(8, 1), microbatches=2))


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("clip", "siglip")))
    for name in OBJECTIVES
  ],
)
def test_overfits_one_batch(name):
  made = learner(OBJECTIVES[name])
  optimizer = with_bounds(optax.adam(3e-3), param_bounds(made))
  step = jax.jit(step_lib.make_train_step(split_state(made)[0], optimizer, seed=0))
  state, data = state_lib.init_train_state(made, optimizer), {**batch(B), "index": np.arange(B)}
  state, first = step(state, data)
  for _ in range(60):
    state, last = step(state, data)
  assert last["loss"] < 0.2 * first["loss"]


def test_scale_stops_at_its_bound_and_can_leave_it():
  made = learner(call(Clip, max_scale=20.0))
  optimizer = with_bounds(optax.sgd(1.0), param_bounds(made))
  _, params, _ = split_state(made)
  at = lambda params: float(jnp.exp(params["objective"]["log_scale"]))
  push = jax.tree.map(jnp.zeros_like, params)
  push["objective"]["log_scale"] = jnp.float32(-5.0)
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update(push, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(at(params), 20.0, rtol=1e-6)
  push["objective"]["log_scale"] = jnp.float32(0.5)
  updates, state = optimizer.update(push, state, params)
  np.testing.assert_allclose(at(optax.apply_updates(params, updates)), 20 * np.exp(-0.5), rtol=1e-5)


class Lookup:
  """Stands in for a model: embeds images by their number, and texts by their tokens."""

  def __init__(self, B, seed=0):
    rng = np.random.default_rng(seed)
    self.table = jnp.asarray(l2_normalize(rng.normal(size=(2, VOCABULARY, 16)).astype(np.float32)))

  def encode_image(self, image, **_):
    return self.table[0][image]

  def encode_text(self, tokens, **_):
    return l2_normalize(self.table[1][tokens].sum(1))


def loss_of(objective, data):
  z = objective.embed(Lookup(B), data, train=True, key=None)
  return z, *objective.loss(z, train=True)


@pytest.mark.parametrize("objective", [Clip, Siglip])
@pytest.mark.parametrize("option", ["positive", "ignore", "negative"])
def test_rows_with_the_same_caption_or_group_are_positives_or_ignored(objective, option):
  f, scale = (losses.info_nce, losses.sigmoid_pairs)[objective is Siglip], SCALES[objective]
  scalars = (1 / scale["temperature"],) if objective is Clip else (scale["scale"], scale["bias"])
  data = {**repeated(), "image": np.arange(B)}
  groups = jnp.arange(B) % (B // 2)
  by_tokens = objective(same_caption=option, **scale)
  assert by_tokens.inputs == ("image", "tokens")
  z, loss, _ = loss_of(by_tokens, data)
  assert ("group" in z) == (option != "negative")
  expected = f(z["image"], z["text"], *scalars, groups=groups, same_group=option)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  # Equal captions tie, and a tie is an error unless the other row does not compete.
  perfect = {"image": jnp.eye(B), "text": jnp.eye(B)[groups], "group": z.get("group")}
  metrics = by_tokens.loss(perfect, train=True)[1]
  accuracy = metrics[f"{objective.__name__.lower()}/image_to_text_accuracy"]
  assert accuracy == (0 if option == "negative" else 0.5)

  by_field = objective(same_caption=option, group="group", **scale)
  assert by_field.inputs == ("image", "tokens", "group")[: 2 + (option != "negative")]
  fields = np.stack([groups, 0 * groups], 1).astype(np.uint32)
  data = {**data, "tokens": batch(B)["tokens"], "group": fields}
  z, loss, _ = loss_of(by_field, data)
  expected = f(z["image"], z["text"], *scalars, groups=groups, same_group=option)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("group", ["tokens", "index"])
def test_several_captions_of_an_image_give_the_mean_of_their_losses(group):
  data = {**repeated(K=3), "image": np.arange(B), "index": np.arange(B) // 2}
  objective = Clip(same_caption="ignore", group=group)
  _, loss, metrics = loss_of(objective, data)
  each = [loss_of(objective, {**data, "tokens": data["tokens"][:, k]}) for k in range(3)]
  np.testing.assert_allclose(loss, np.mean([one for _, one, _ in each]), rtol=1e-6)
  name = "clip/text_to_image_accuracy"
  np.testing.assert_allclose(metrics[name], np.mean([m[name] for *_, m in each]), rtol=1e-6)


def test_the_compute_of_several_captions_is_counted():
  made = jax.eval_shape(learner)
  shape = lambda K: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    {name: x for name, x in repeated(K).items() if name in ("image", "tokens")},
  )
  counted, once = count_compute(made, shape(3)), count_compute(made, shape(1))
  np.testing.assert_allclose(counted.text, 3 * once.text, rtol=1e-6)
  np.testing.assert_allclose(counted.image, once.image, rtol=1e-6)


@pytest.mark.slow
def test_microbatches_and_devices_match_with_several_captions_in_groups():
  objective = call(Clip, same_caption="positive", chunk_size=8)
  results = [
    trained(objective, mesh=mesh, microbatches=microbatches, data=repeated(K=2))
    for mesh, microbatches in ((None, 1), (mesh_lib.make_mesh(2, 2, 2), 2))
  ]
  check_same(*results)


def test_row_hashes_are_equal_exactly_for_equal_rows():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 3, (2000, 6)).astype(np.int32)  # 729 different rows, and many anagrams.
  hashes = np.asarray(row_hashes(jnp.asarray(rows)))
  assert hashes.shape == (2000, 2) and hashes.dtype == np.uint32
  _, by_row = np.unique(rows, axis=0, return_inverse=True)
  _, by_hash = np.unique(hashes, axis=0, return_inverse=True)
  assert len(set(zip(by_row.ravel(), by_hash.ravel()))) == by_row.max() + 1 == by_hash.max() + 1
  for column in hashes.T:  # Each half alone separates these few rows, too.
    assert len(np.unique(column)) == by_row.max() + 1


def test_initial_scale_and_bounds_are_those_of_clip():
  made = learner()
  np.testing.assert_allclose(jnp.exp(made.objective.log_scale[...]), 1 / 0.07, rtol=1e-6)
  assert param_bounds(made)["objective"]["log_scale"] == (0.0, pytest.approx(np.log(100)))


def test_evaluation_uses_all_patches():
  made = learner(call(Clip, keep_patches=0.5))
  data = batch(B)
  z = made.objective.embed(made.model, data, train=False, key=None)
  np.testing.assert_allclose(z["image"], made.model.encode_image(data["image"]), atol=1e-6)
