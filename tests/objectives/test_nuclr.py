"""NUCLR's loss and popularities against loops over a small data set."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.model.learner import split_state
from clip_jax.objectives.nuclr import Nuclr

N, E, TAU = 6, 5, 0.2


def unit(seed):
  z = np.random.default_rng(seed).normal(size=(N, E))
  return z / np.linalg.norm(z, axis=1, keepdims=True)


def probabilities(s, zeta):
  """Of each text j for each image i, by the definition with popularities of texts."""
  weights = np.exp((s - zeta) / TAU)
  return weights / weights.sum(1, keepdims=True)


def test_the_loss_and_the_steps_are_those_of_the_whole_data_set():
  image, text, rng = unit(0), unit(1), np.random.default_rng(2)
  s = image @ text.T
  made = Nuclr(
    gamma=1.0,
    temperature=TAU,
    popularity_learning_rate=0.01,
    image_rate_ratio=0.5,
    popularity_start_epochs=0.0,
    examples=N,
  )
  zeta = {side: 0.1 * rng.normal(size=N) for side in ("image", "text")}
  for side, values in zeta.items():
    stored = getattr(made.per_example, f"zeta_{side}")
    stored[...] = stored[...].at[:N].set(values)
  z = {"image": jnp.float32(image), "text": jnp.float32(text), "index": jnp.arange(N)}
  graphdef, params, stats = split_state(made)

  @jax.jit
  def step(stats, image):
    merged = nnx.merge(graphdef, params, stats)
    loss, _ = merged.loss({**z, "image": image}, train=True)
    return loss, split_state(merged)[2]

  loss, after = step(stats, z["image"])
  # Minus the log-probability of the own text, up to the constant log(N - 1) and exp(zeta / tau).
  expected = 0.0
  for matrix, popular in ((s, zeta["text"]), (s.T, zeta["image"])):
    p = probabilities(matrix, popular)
    expected += np.mean(-np.log(np.diag(p)) - popular / TAU - np.log(N - 1)) / 2
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for side, matrix, rate in (("text", s, 0.01), ("image", s.T, 0.005)):
    total = probabilities(matrix, zeta[side]).sum(0)  # Over all anchors.
    wanted = zeta[side] - rate * (1 - total)
    found = after["per_example"][f"zeta_{side}"][:N]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_popularities_start_later_and_steps_reach_their_optimum():
  image, text = unit(3), unit(4)
  made = Nuclr(
    gamma=1.0,
    temperature=TAU,
    popularity=0.0,
    popularity_learning_rate=0.05,
    popularity_start_epochs=2.0,
    examples=N,
  )
  z = {"image": jnp.float32(image), "text": jnp.float32(text), "index": jnp.arange(N)}
  graphdef, params, stats = split_state(made)

  @jax.jit
  def step(stats):
    merged = nnx.merge(graphdef, params, stats)
    merged.loss(z, train=True)
    return split_state(merged)[2]

  for k in range(400):
    stats = step(stats)
    if k == 1:
      assert not np.asarray(stats["per_example"]["zeta_text"]).any()
  # At the optimum, exp(zeta_j / tau) is the sum of the probabilities of text j, so all sums are 1.
  zeta = np.asarray(stats["per_example"]["zeta_text"][:N], np.float64)
  assert np.abs(zeta).max() > 0.01
  np.testing.assert_allclose(probabilities(image @ text.T, zeta).sum(0), 1, atol=1e-3)
