"""Histograms of oriented gradients against a loop over pixels, and combined towers."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.objectives.clip import Clip
from clip_jax.towers import hog
from clip_jax.towers.concat import ConcatTowers
from clip_jax.towers.vit import Vit
from tiny import SIZE, batch, image_tower, learner


def histograms_by_loops(image, cell, orientations):
  """Histograms of one image, pixel by pixel."""
  H, W, _ = image.shape
  at = lambda y, x: image[min(max(y, 0), H - 1), min(max(x, 0), W - 1)].astype(float)
  cells = np.zeros((H // cell, W // cell, orientations))
  for y in range(H):
    for x in range(W):
      along, down = at(y, x + 1) - at(y, x - 1), at(y + 1, x) - at(y - 1, x)
      c = int(np.argmax(along**2 + down**2))
      turn = (math.atan2(down[c], along[c]) % math.pi) / math.pi * orientations
      low = int(turn)
      for k, share in ((low, 1 - (turn - low)), (low + 1, turn - low)):
        cells[y // cell, x // cell, k % orientations] += (
          share * math.hypot(along[c], down[c]) / cell**2
        )
  energy = np.pad((cells**2).sum(-1), 1, mode="edge")
  around = [
    [energy[y : y + 3, x : x + 3].mean() for x in range(W // cell)] for y in range(H // cell)
  ]
  return cells / np.sqrt(np.array(around)[..., None] + hog.ENERGY_FLOOR)


def test_histograms_match_a_loop_over_pixels():
  image = np.random.default_rng(0).uniform(-1, 1, (24, 16, 3)).astype(np.float32)
  found = hog.histograms(jnp.asarray(image)[None], cell=4, orientations=9)[0]
  np.testing.assert_allclose(found, histograms_by_loops(image, 4, 9), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("direction, orientation", [((0, 1), 0), ((1, 0), 2), ((1, 1), 1)])
def test_edges_fall_into_the_bin_of_their_orientation(direction, orientation):
  y, x = np.mgrid[:8, :8]
  ramp = (direction[0] * y + direction[1] * x)[..., None] / 16 * np.ones(3)
  inside = hog.histograms(jnp.asarray(ramp, jnp.float32)[None], cell=2, orientations=4)[0, 1:3, 1:3]
  assert np.all(np.argmax(inside, -1) == orientation)
  np.testing.assert_allclose(np.delete(inside, orientation, -1), 0, atol=1e-5)


def test_uniform_image_has_no_edges():
  assert not hog.histograms(jnp.ones((1, 16, 16, 3)), cell=8, orientations=9).any()


def test_features_are_edges_and_colours_of_each_cell():
  image = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
  features = hog.Hog(image_size=(16, 24), dtype="float32")(image)
  assert features.shape == (2, 2 * 3 * 12)
  cells = np.asarray(features).reshape(2, 2, 3, 12)
  np.testing.assert_allclose(
    cells[1, ..., :9], 4 * histograms_by_loops(image[1], 8, 9), rtol=2e-4, atol=1e-4
  )
  np.testing.assert_allclose(cells[1, 1, 2, 9:], 2 * image[1, 8:, 16:].mean((0, 1)), rtol=1e-4)


def test_several_sizes_of_cells_give_the_features_of_each():
  image = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3)).astype(np.float32)
  make = lambda cell: hog.Hog(image_size=(24, 16), cell=cell, dtype="float32")
  both = make((4, 8))
  expected = np.concatenate([make(4)(image), make(8)(image)], axis=1)
  assert both.width == expected.shape[1] == 12 * (6 * 4 + 3 * 2)
  np.testing.assert_allclose(both(image), expected, rtol=1e-4, atol=1e-5)


def test_invalid_arguments_are_reported():
  with pytest.raises(UserError, match="set one side, or several that are multiples of the first"):
    hog.Hog(image_size=24, cell=(4, 6))
  with pytest.raises(UserError, match="expected images of 16 x 16, but got 24 x 24"):
    hog.Hog(image_size=16)(jnp.zeros((1, 24, 24, 3)))
  with pytest.raises(UserError, match="drops patches, but a Hog has none"):
    hog.Hog(image_size=16)(jnp.zeros((1, 16, 16, 3)), keep=0.5)


BOTH = call(ConcatTowers, towers=(image_tower(), call(hog.Hog, image_size=SIZE, dtype="float32")))


def test_combined_features_are_those_of_each_tower():
  image = np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)
  both = build(BOTH, rngs=nnx.Rngs(0))
  vit = build(image_tower(), rngs=nnx.Rngs(0))
  assert isinstance(both.towers[0], Vit) and both.width == vit.width + 4 * 12
  expected = np.concatenate([vit(image), hog.Hog(image_size=SIZE, dtype="float32")(image)], 1)
  np.testing.assert_allclose(both(image), expected, rtol=1e-6)


def test_combined_towers_are_trained():
  made = learner(call(Clip), image=BOTH)
  objective, data = made.objective, batch(4)
  graph, params = nnx.split(made.model)

  def loss(params):
    z = objective.embed(nnx.merge(graph, params), data, train=True, key=None)
    return objective.loss(z, train=True)[0]

  gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
  assert all(np.abs(g).max() > 0 for g in gradients)


def test_combined_towers_with_different_image_sizes_are_an_error():
  with pytest.raises(UserError, match="same image_size, but got 16 x 16, 32 x 32"):
    build(call(ConcatTowers, towers=(image_tower(), image_tower(image_size=32))), rngs=nnx.Rngs(0))
