"""Global contrastive losses against loops over the data set, in NumPy with float64."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import losses
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.objectives.base import set_logit
from clip_jax.objectives.global_clip import GlobalClip
from clip_jax.objectives.per_example import PerExample, log_mean_by_index, mean_by_index
from clip_jax.parallel.mesh import make_mesh
from clip_jax.parallel.partition import state_shardings
from clip_jax.parallel.placement import batch_sharding

B, E, N = 6, 5, 20
TAU = 0.2


def unit(rng, shape):
  z = rng.normal(size=shape)
  return z / np.linalg.norm(z, axis=-1, keepdims=True)


def mean_ratios(z_image, z_text, tau=TAU):
  """g of each row by its definition, [B] for images and for texts."""
  s = z_image @ z_text.T
  image = [
    np.mean([np.exp((s[i, j] - s[i, i]) / tau) for j in range(B) if j != i]) for i in range(B)
  ]
  text = [
    np.mean([np.exp((s[i, j] - s[j, j]) / tau) for i in range(B) if i != j]) for j in range(B)
  ]
  return np.array(image), np.array(text)


def embeddings(seed, index):
  rng = np.random.default_rng(seed)
  z = {"image": unit(rng, (B, E)), "text": unit(rng, (B, E))}
  return {name: jnp.asarray(x, jnp.float32) for name, x in z.items()} | {"index": jnp.array(index)}


def as_float64(z):
  return np.asarray(z["image"], np.float64), np.asarray(z["text"], np.float64)


def test_the_averages_follow_their_definition_over_several_batches():
  made = GlobalClip(version="v1", gamma=0.3, temperature=TAU, eps=1e-3, examples=N)
  u, rng = {}, np.random.default_rng(0)
  for step in range(6):
    index = rng.choice(N, B, replace=step == 5)  # With a record that occurs twice at the end.
    z = embeddings(step, index)
    value, metrics = made.loss(z, train=True)
    wanted = []
    for side, g in zip(("image", "text"), mean_ratios(*as_float64(z))):
      for k in set(index.tolist()):
        own = g[index == k].mean()
        u[side, k] = own if (side, k) not in u else 0.7 * u[side, k] + 0.3 * own
      wanted.append(np.mean([np.log(1e-3 + u[side, k]) for k in index]))
    np.testing.assert_allclose(value, np.mean(wanted), rtol=1e-5)
    assert metrics["clip/gamma"] == pytest.approx(0.3)
  for side in ("image", "text"):
    stored = np.asarray(getattr(made.per_example, f"log_u_{side}")[...])
    for k in range(N):
      assert (stored[k] > -1e29) == ((side, k) in u)
      if (side, k) in u:
        np.testing.assert_allclose(np.exp(stored[k]), u[side, k], rtol=1e-4)


def test_without_training_nothing_is_stored():
  made = GlobalClip(examples=N)
  made.loss(embeddings(0, range(B)), train=False)
  assert (np.asarray(made.per_example.log_u_image[...]) < -1e29).all() and made.updates[...] == 0


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_with_gamma_one_the_gradient_is_that_of_info_nce(chunk_size):
  z = embeddings(0, range(B))
  made = GlobalClip(
    version="v0", gamma=1.0, temperature=TAU, eps=1 / (B - 1), examples=N, chunk_size=chunk_size
  )
  ours = lambda a, b: made.loss({**z, "image": a, "text": b}, train=False)[0]
  theirs = lambda a, b: losses.info_nce(a, b, 1 / TAU)
  value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(z["image"], z["text"])
  wanted, expected = jax.value_and_grad(theirs, argnums=(0, 1))(z["image"], z["text"])
  np.testing.assert_allclose(value, wanted - np.log(B - 1), rtol=1e-5)
  for one, other in zip(gradients, expected):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_the_gradient_treats_the_averages_as_constants(version):
  """Against finite differences of the sum of g / (eps + u), with the u that the loss stores."""
  made = GlobalClip(
    version=version, gamma=0.5, temperature=TAU, temperature_learning_rate=1e-12, examples=N
  )
  for step in range(2):
    made.loss(embeddings(step, range(B)), train=True)
  z = embeddings(2, range(B))
  gradient = jax.grad(lambda a: made.loss({**z, "image": a}, train=False)[0])(z["image"])
  made.loss(z, train=True)
  state = made.per_example
  u = [np.exp(np.asarray(x[...])[:B]) for x in (state.log_u_image, state.log_u_text)]
  image, text = as_float64(z)

  def surrogate(image):
    total = sum((g / own).mean() for g, own in zip(mean_ratios(image, text), u)) / 2
    return total * (TAU if version in ("v2", "v3") else 1)

  for i, e in [(0, 0), (3, 2), (5, 4)]:
    step = np.zeros((B, E))
    step[i, e] = 1e-5
    slope = (surrogate(image + step) - surrogate(image - step)) / 2e-5
    np.testing.assert_allclose(gradient[i, e], slope, rtol=2e-3, atol=1e-6)


def test_individual_temperatures_descend_their_objective():
  z, rate, rho = embeddings(0, [3, 1, 4, 15, 9, 2]), 1e-3, 0.5
  made = GlobalClip(
    version="v2", gamma=1.0, temperature=TAU, temperature_learning_rate=rate, rho=rho, examples=N
  )
  made.loss(z, train=True)

  def objective(tau, k):
    return tau * (np.log(mean_ratios(*as_float64(z), tau)[k]) + rho)

  for k, side in enumerate(("image", "text")):
    slope = (objective(TAU + 1e-6, k) - objective(TAU - 1e-6, k)) / 2e-6
    stored = np.asarray(getattr(made.per_example, f"tau_{side}")[...])
    np.testing.assert_allclose(stored[z["index"]], TAU - rate * slope, rtol=1e-4)
    assert (np.delete(stored[:N], z["index"]) == np.float32(TAU)).all()
  scale, bias = made.logit()
  assert scale == pytest.approx(1 / TAU) and bias == 0


def test_v3_learns_its_temperature_by_its_own_formula():
  z, rho = embeddings(0, range(B)), 1.5
  made = GlobalClip(version="v3", gamma=1.0, temperature=TAU, rho=rho, eps=0.0, examples=N)

  graphdef, params, rest = nnx.split(made, nnx.Param, ...)
  loss = lambda params: nnx.merge(graphdef, params, rest).loss(z, train=False)[0]
  value, slopes = jax.value_and_grad(loss)(params)
  slope = slopes.log_scale[...]
  formula = lambda tau: (
    tau * (np.mean([np.log(g).mean() for g in mean_ratios(*as_float64(z), tau)]) + rho)
  )
  np.testing.assert_allclose(value, formula(TAU), rtol=1e-5)
  wanted = (formula(TAU + 1e-6) - formula(TAU - 1e-6)) / 2e-6 * -TAU
  np.testing.assert_allclose(slope, wanted, rtol=1e-3)


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_it_starts_from_the_scale_of_a_trained_model(version):
  made = GlobalClip(version=version, temperature=TAU, max_scale=50.0, examples=N)
  set_logit(made, 25.0, -3.0)
  np.testing.assert_allclose(made.logit(), (25, 0), rtol=1e-6)
  _, metrics = made.loss(embeddings(0, range(B)), train=False)
  assert metrics["clip/logit_scale"] == pytest.approx(25, rel=1e-5)
  if version in ("v0", "v3"):
    with pytest.raises(UserError, match="above max_scale=50"):
      set_logit(made, 60.0, 0.0)


def test_gamma_falls_along_a_cosine():
  made = GlobalClip(gamma=0.2, gamma_decay_epochs=2.0, examples=2 * B)
  seen = [float(made.loss(embeddings(k, range(B)), train=True)[1]["clip/gamma"]) for k in range(6)]
  wanted = [0.2 + 0.4 * (1 + np.cos(np.pi * min(k / 4, 1))) for k in range(6)]
  np.testing.assert_allclose(seen, wanted, rtol=1e-5)


def test_extreme_similarities_neither_overflow_nor_underflow():
  z = embeddings(0, range(B))
  z["text"] = -z["image"]  # Every other pair is nearer than the own one, at scale 100.
  made = GlobalClip(version="v1", gamma=0.9, temperature=0.01, examples=N)
  for _ in range(2):
    value, gradient = jax.value_and_grad(lambda a: made.loss({**z, "image": a}, train=False)[0])(
      z["image"]
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    made.loss(z, train=True)


def test_means_by_index_follow_their_definition():
  rng = np.random.default_rng(0)
  index, x = rng.integers(0, 5, 30), rng.normal(size=30).astype(np.float32)
  wanted = [x[index == k].mean() for k in index]
  np.testing.assert_allclose(mean_by_index(jnp.array(index), jnp.array(x)), wanted, atol=1e-6)
  logs = np.log([np.exp(x[index == k]).mean() for k in index]) - 200
  np.testing.assert_allclose(
    log_mean_by_index(jnp.array(index), jnp.array(x - 200)), logs, rtol=1e-5
  )


def test_no_device_ever_holds_the_state_of_all_records():
  records = 2**22
  mesh = make_mesh(4, 2)
  made = jax.eval_shape(lambda: GlobalClip(version="v2", examples=records, gamma=0.5))
  graphdef, params, stats = split_state(made)

  def step(params, stats, z):
    objective = nnx.merge(graphdef, params, stats)
    loss, _ = objective.loss(z, train=True)
    return loss, split_state(objective)[2]

  z = {"image": (16, E), "text": (16, E), "index": (16,)}
  abstract = {
    name: jax.ShapeDtypeStruct(
      shape, jnp.int32 if name == "index" else jnp.float32, sharding=batch_sharding(mesh)
    )
    for name, shape in z.items()
  }
  where = state_shardings({"objective": stats}, mesh)["objective"]
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(step, in_shardings=(None, where, None), out_shardings=(None, where), donate_argnums=1)
      .lower(params, stats, abstract)
      .compile()
    )
  memory = compiled.memory_analysis()
  one = 4 * records  # Bytes of one array with the state of all records, in float32.
  assert memory.argument_size_in_bytes < 1.01 * 4 * one / 8
  assert memory.temp_size_in_bytes < one / 4


def test_arrays_are_long_enough_and_divisible_by_the_devices():
  assert len(PerExample(65, a=0.0).a[...]) == 128
  shape = jax.eval_shape(lambda: PerExample(10**9 + 1, a=0.0).a[...]).shape
  assert shape[0] >= 10**9 + 1 and shape[0] % 4096 == 0


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(), "examples.*is missing"),
    (dict(examples=5, same_caption="positive"), "Set same_caption to 'ignore'"),
  ],
)
def test_impossible_settings_are_errors(arguments, message):
  with pytest.raises(UserError, match=message):
    GlobalClip(**arguments)
