"""The MLP-Mixer against its equations."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

import by_hand
from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.model import split
from tiny_towers import IMAGE_TOWERS, changed, features, made, pixels, shaken

SPEC = changed(IMAGE_TOWERS["mixer"], image_size=(16, 24))


def test_a_mixer_mixes_places_and_channels_in_turn():
  tower, image = shaken(made(SPEC)), pixels(SPEC)
  p = split(tower)[1]
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


def test_a_mixer_is_for_one_size_of_images():
  tower = made(SPEC)
  with pytest.raises(UserError, match="images of 16 x 24 and got 16 x 16; its matrices over places"):
    tower(jnp.zeros((1, 16, 16, 3)))
  with pytest.raises(UserError, match="20 x 16 does not divide into patches of 8.*that does: 16"):
    build(changed(SPEC, image_size=(20, 16)), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="MlpMixer size 'XL' does not exist; there are 'S', 'B'"):
    build(changed(SPEC, size="XL"), rngs=nnx.Rngs(0))
