"""Models and batches small enough for tests."""

from flax import nnx
import jax
from jax.sharding import AbstractDevice, AbstractMesh
import numpy as np

from clip_jax.config import build, call
from clip_jax.model.learner import Learner
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit

LENGTH, VOCABULARY, SIZE = 8, 64, 16


def chips(kind):
  """An abstract mesh of four devices of a platform that need not be here."""
  return AbstractMesh(
    (4,), ("data",), abstract_device=AbstractDevice(device_kind=kind, num_cores=None, platform=kind)
  )


def image_tower(tower=Vit, **changes):
  """Config of a minimal image tower in float32."""
  return call(
    tower, **{**dict(size="mu", depth=2, patch=8, image_size=SIZE, dtype="float32"), **changes}
  )


def text_tower(**changes):
  """Config of a small text tower in float32."""
  return call(
    TextTransformer,
    **{
      **dict(size="mu", depth=2, vocab_size=VOCABULARY, context_length=LENGTH, dtype="float32"),
      **changes,
    },
  )


def model_call(**changes):
  """Config of a small model."""
  return call(
    TwoTowers, **{**dict(image=image_tower(), text=text_tower(), embed_dim=16), **changes}
  )


def learner(objective=None, seed=0, **changes):
  """A small learner, built."""
  rngs = nnx.Rngs(seed)
  model = build(model_call(**changes), rngs=rngs)
  return Learner(model, build(objective or call(Clip), model=model, rngs=rngs))


def batch(B, seed=0):
  """Random images, two noisy views of each, and tokens with padding at the end of each text."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, VOCABULARY, (B, LENGTH))
  tokens[np.arange(LENGTH) >= rng.integers(1, LENGTH + 1, B)[:, None]] = 0
  image = rng.integers(0, 256, (B, SIZE, SIZE, 3)).astype(np.uint8)
  view = lambda: (image + rng.normal(0, 30, image.shape)).clip(0, 255).astype(np.uint8)
  return {"image": image, "tokens": tokens.astype(np.int32), "view_a": view(), "view_b": view()}


def largest_difference(a, b):
  """Largest absolute difference between two trees of arrays."""
  return max(
    float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
