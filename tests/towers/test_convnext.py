"""ConvNeXt against a NumPy reference."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.towers.convnext import ConvNextBlock
import reference_layers
from tiny_towers import IMAGE_TOWERS, features, pixels, randomised, with_arguments


def depthwise(p, x):
  """Depthwise 7 x 7 convolution with zero padding."""
  kernel, out = np.asarray(p["kernel"]), np.zeros_like(x)
  for i in range(x.shape[1]):
    for j in range(x.shape[2]):
      for di in range(-3, 4):
        for dj in range(-3, 4):
          if 0 <= i + di < x.shape[1] and 0 <= j + dj < x.shape[2]:
            out[:, i, j] += x[:, i + di, j + dj] * kernel[di + 3, dj + 3, 0]
  return out + np.asarray(p["bias"])


@pytest.mark.parametrize("image_size", [(40, 32), (34, 27)])  # The second needs padding.
def test_convnext_matches_its_blocks_written_out(image_size):
  spec = with_arguments(IMAGE_TOWERS["convnext"], image_size=image_size)
  tower, image = randomised(spec), pixels(spec, B=2)
  p = split_state(tower)[1]
  x = reference_layers.layer_norm(
    p["stem_norm"], reference_layers.linear(p["stem"], reference_layers.patches(image, 4))
  )
  for stage in range(2):
    if stage:
      x = reference_layers.linear(
        p["reductions"][0],
        reference_layers.patches(reference_layers.layer_norm(p["norms"][0], x), 2),
      )
    for i in range(2):
      b = reference_layers.block_params(p["stacks"][stage]["blocks"], i)
      y = reference_layers.mlp(b["mlp"], reference_layers.layer_norm(b["norm"], depthwise(b, x)))
      x = x + np.asarray(b["scale"]) * y
  expected = reference_layers.layer_norm(p["norm"], x.mean((1, 2)))
  np.testing.assert_allclose(features(tower, image), expected, rtol=1e-4, atol=1e-4)


def test_convnext_takes_images_of_any_size():
  tower = randomised(IMAGE_TOWERS["convnext"])
  assert features(tower, jnp.zeros((1, 3, 5, 3))).shape == (1, 16)


def test_layer_scale_starts_small():
  spec = with_arguments(IMAGE_TOWERS["convnext"], layer_scale=1e-6)
  tower = jax.jit(lambda: build(spec, rngs=nnx.Rngs(0)))()
  for stack in tower.stacks:
    np.testing.assert_allclose(stack.blocks.scale[...], 1e-6, rtol=1e-6)


def test_feature_maps_are_not_gathered():
  block, mesh = (
    randomised(
      lambda rngs: ConvNextBlock(32, 1.0, 1e-6, activation="gelu", dtype="float32", rngs=rngs)
    ),
    mesh_lib.make_mesh(2, 4),
  )
  loss = lambda block, x: jnp.sin(block(x)).sum()
  with jax.set_mesh(mesh):
    block = jax.device_put(block, partition.state_shardings(block, mesh, min_size=64))
    x = jax.device_put(jnp.ones((16, 8, 8, 32)), placement.batch_sharding(mesh))
    program = jax.jit(jax.grad(loss, (0, 1))).lower(block, x).compile().as_text()
  gathered = re.findall(r"= f32\[([\d,]*)\]\S* all-gather\(", program)
  assert "7,7,1,32" in gathered and "16,8,8,32" not in gathered


def test_unknown_size_lists_the_known_ones():
  with pytest.raises(UserError, match="size is 'XXL'; ConvNext expects 'T', 'S'"):
    build(with_arguments(IMAGE_TOWERS["convnext"], size="XXL"), rngs=nnx.Rngs(0))
