"""A model without towers, so that tests of an objective compile little."""

from types import SimpleNamespace

from flax import nnx
import jax.numpy as jnp
import numpy as np

from clip_jax.model.two_towers import l2_normalize


class StandIn:
  """Image features are pixels; an embedding is that of the features, or the sum of the tokens'."""

  def __init__(self, width=6, embed_dim=6, vocab_size=13, context_length=5, seed=0):
    rng = np.random.default_rng(seed)
    self.image = SimpleNamespace(width=width)
    self.text = SimpleNamespace(vocab_size=vocab_size, context_length=context_length, width=width)
    self.matrix = jnp.float32(rng.normal(size=(width, embed_dim)))
    self.table = jnp.float32(rng.normal(size=(vocab_size, embed_dim)))
    self.seen = 0  # Number of times that the image tower ran.

  def image_features(self, image, **_):
    self.seen += 1
    return image

  def project_image(self, features):
    return l2_normalize(features @ self.matrix)

  def encode_image(self, image, **options):
    return self.project_image(self.image_features(image, **options))

  def encode_text(self, tokens, **_):
    return l2_normalize(self.table[tokens].sum(1))


def stand_in_batch(model, B, seed=0):
  """Features as images, and tokens padded with 0."""
  rng = np.random.default_rng(seed)
  L = model.text.context_length
  tokens = rng.integers(1, model.text.vocab_size, (B, L))
  tokens[np.arange(L) >= rng.integers(1, L + 1, B)[:, None]] = 0
  image = rng.normal(size=(B, model.image.width))
  return {"image": jnp.float32(image), "tokens": jnp.int32(tokens)}


def rngs():
  return nnx.Rngs(0)
