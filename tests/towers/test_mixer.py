"""MLP-Mixer against its equations."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
import reference_layers
from tiny_towers import IMAGE_TOWERS, features, pixels, randomised, with_arguments

SPEC = with_arguments(IMAGE_TOWERS["mixer"], image_size=(16, 24))


def test_mixer_matches_its_equations():
  tower, image = randomised(SPEC), pixels(SPEC)
  p = split_state(tower)[1]
  x = reference_layers.linear(p["embedding"], reference_layers.patches(image, 8)).reshape(4, 6, 32)
  for i in range(2):
    b = reference_layers.block_params(p["stack"]["blocks"], i)
    y = reference_layers.layer_norm(b["norm_tokens"], x)
    up, down = b["tokens"]["up"], b["tokens"]["down"]
    y = np.einsum("bnc,nh->bhc", y, up["kernel"]) + np.asarray(up["bias"])[None, :, None]
    y = np.einsum("bhc,hn->bnc", reference_layers.gelu_tanh(y), down["kernel"])
    x = x + y + np.asarray(down["bias"])[None, :, None]
    x = x + reference_layers.mlp(
      b["channels"], reference_layers.layer_norm(b["norm_channels"], x), reference_layers.gelu_tanh
    )
  expected = reference_layers.layer_norm(p["norm"], x).mean(1)
  np.testing.assert_allclose(features(tower, image), expected, rtol=1e-4, atol=1e-4)


def test_invalid_arguments_are_reported():
  tower = randomised(SPEC)
  with pytest.raises(UserError, match="of 16 x 24, but got 16 x 16; its token MLPs"):
    tower(jnp.zeros((1, 16, 16, 3)))
  with pytest.raises(UserError, match="20 x 16 image cannot be divided into 8 x 8.*height: 16"):
    build(with_arguments(SPEC, image_size=(20, 16)), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="size is 'XL'; MlpMixer expects 'S', 'B'"):
    build(with_arguments(SPEC, size="XL"), rngs=nnx.Rngs(0))
