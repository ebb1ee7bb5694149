"""MLP-Mixer against its equations."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

import by_hand
from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model.learner import split_state
from tiny_towers import IMAGE_TOWERS, changed, features, filled, pixels

SPEC = changed(IMAGE_TOWERS["mixer"], image_size=(16, 24))


def test_mixer_matches_its_equations():
  tower, image = filled(SPEC), pixels(SPEC)
  p = split_state(tower)[1]
  x = by_hand.linear(p["embedding"], by_hand.squares(image, 8)).reshape(4, 6, 32)
  for i in range(2):
    b = by_hand.of(p["stack"]["blocks"], i)
    y = by_hand.layer_norm(b["norm_tokens"], x)
    up, down = b["tokens"]["up"], b["tokens"]["down"]
    y = np.einsum("bnc,nh->bhc", y, up["kernel"]) + np.asarray(up["bias"])[None, :, None]
    y = np.einsum("bhc,hn->bnc", by_hand.gelu_tanh(y), down["kernel"])
    x = x + y + np.asarray(down["bias"])[None, :, None]
    x = x + by_hand.mlp(b["channels"], by_hand.layer_norm(b["norm_channels"], x), by_hand.gelu_tanh)
  expected = by_hand.layer_norm(p["norm"], x).mean(1)
  np.testing.assert_allclose(features(tower, image), expected, rtol=1e-4, atol=1e-4)


def test_invalid_arguments_are_reported():
  tower = filled(SPEC)
  with pytest.raises(UserError, match="of 16 x 24, but got 16 x 16; its token MLPs"):
    tower(jnp.zeros((1, 16, 16, 3)))
  with pytest.raises(UserError, match="20 x 16 image cannot be divided into 8 x 8.*height: 16"):
    build(changed(SPEC, image_size=(20, 16)), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="size is 'XL'; MlpMixer expects 'S', 'B'"):
    build(changed(SPEC, size="XL"), rngs=nnx.Rngs(0))
