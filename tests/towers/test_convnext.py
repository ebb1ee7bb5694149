"""ConvNeXt against loops."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

import by_hand
from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model import split
from tiny_towers import IMAGE_TOWERS, changed, features, made, pixels, shaken


def depthwise(p, x):
  """Each channel by itself, each place from the 7 x 7 around it, zeros beyond the edge."""
  kernel, out = np.asarray(p["kernel"]), np.zeros_like(x)
  for i in range(x.shape[1]):
    for j in range(x.shape[2]):
      for di in range(-3, 4):
        for dj in range(-3, 4):
          if 0 <= i + di < x.shape[1] and 0 <= j + dj < x.shape[2]:
            out[:, i, j] += x[:, i + di, j + dj] * kernel[di + 3, dj + 3, 0]
  return out + np.asarray(p["bias"])


@pytest.mark.parametrize("image_size", [(40, 32), (34, 27)])  # The second divides nowhere.
def test_a_convnext_is_its_blocks_written_out(image_size):
  spec = changed(IMAGE_TOWERS["convnext"], image_size=image_size)
  tower, image = shaken(made(spec)), pixels(spec, B=2)
  p = split(tower)[1]
  x = by_hand.layer_norm(p["stem_norm"], by_hand.linear(p["stem"], by_hand.squares(image, 4)))
  for stage in range(2):
    if stage:
      x = by_hand.linear(p["reductions"][0],
                         by_hand.squares(by_hand.layer_norm(p["norms"][0], x), 2))
    for i in range(2):
      b = by_hand.of(p["stacks"][stage]["blocks"], i)
      y = by_hand.mlp(b["mlp"], by_hand.layer_norm(b["norm"], depthwise(b, x)))
      x = x + np.asarray(b["scale"]) * y
  expected = by_hand.layer_norm(p["norm"], x.mean((1, 2)))
  np.testing.assert_allclose(features(tower, image), expected, rtol=1e-4, atol=1e-4)


def test_a_convnext_sees_images_of_any_size():
  tower = made(IMAGE_TOWERS["convnext"])
  assert features(tower, jnp.zeros((1, 3, 5, 3))).shape == (1, 16)


def test_blocks_start_with_next_to_no_say():
  tower = made(changed(IMAGE_TOWERS["convnext"], layer_scale=1e-6))
  x = pixels(IMAGE_TOWERS["convnext"])
  before = features(tower, x)
  for stack in tower.stacks:
    stack.blocks.scale[...] *= 0
  np.testing.assert_allclose(features(tower, x), before, atol=1e-4)


def test_an_unknown_size_lists_the_known_ones():
  with pytest.raises(UserError, match="ConvNext size 'XXL' does not exist; there are 'T', 'S', 'B'"):
    build(changed(IMAGE_TOWERS["convnext"], size="XXL"), rngs=nnx.Rngs(0))
