"""A minimal config of each kind of image tower; the generic tower tests run on all of them."""

from flax import nnx
import jax
import numpy as np

from clip_jax.config import build, call, function
from clip_jax.towers.clip_resnet import ClipResnet
from clip_jax.towers.convnext import ConvNext
from clip_jax.towers.mixer import MlpMixer
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.sizes import both_sides
from clip_jax.towers.swin import Swin
from tiny import image_tower

# float32, with square images of 16 or 32 pixels, and at least two identical blocks so that there is
# a loop over blocks to test.
IMAGE_TOWERS = {
  "vit-gap": image_tower(),
  "vit-tok": image_tower(pool="tok", positions="sincos2d"),
  "vit-map": image_tower(pool="map"),
  "vit-openai": image_tower(
    pool="tok",
    class_position=True,
    pre_norm=True,
    patch_bias=False,
    activation="quick_gelu",
    norm_eps=1e-5,
  ),
  "clip-resnet": call(
    ClipResnet, stages=(2,), width=8, num_heads=2, image_size=16, dtype="float32"
  ),
  "resnet": call(BitResnet, stages=(1, 3), width=8, groups=4, image_size=16, dtype="float32"),
  "resnet-flat": call(
    BitResnet,
    stages=(3, 1),
    width=4,
    block="basic",
    stem="small",
    groups=2,
    image_size=16,
    dtype="float32",
    pool="flat",
  ),
  "mixer": call(MlpMixer, width=32, depth=2, patch=8, image_size=16, dtype="float32"),
  "convnext": call(
    ConvNext, stages=(2, 2), width=8, layer_scale=0.5, image_size=16, dtype="float32"
  ),
  "swin": call(
    Swin, stages=(2, 4), width=16, head_width=8, window=3, patch=2, image_size=16, dtype="float32"
  ),
}


def with_arguments(spec, **changes):
  """The config with some of its arguments replaced."""
  arguments = {name: value for name, value in spec.items() if name != "fn"}
  return call(function(spec.fn), **(arguments | changes))


def randomised(spec, seed=1):
  """The tower with random values in every array, so that none is at an initial zero or one.

  Args:
    spec: config of a module, or a function that makes one from `rngs`.
  """
  rng = np.random.default_rng(seed)
  make = spec if callable(spec) else lambda rngs: build(spec, rngs=rngs)
  abstract = jax.eval_shape(lambda: make(nnx.Rngs(0)))

  def one(path, x):
    value = (0.2 * rng.normal(size=x.shape)).astype(np.float32)
    return 1 + abs(value) if "variance" in jax.tree_util.keystr(path) else value

  return jax.tree_util.tree_map_with_path(one, abstract)


def features(tower, image, **options):
  """Features [B, D], under jit, which is faster than running the operations one by one."""
  return jax.jit(lambda tower, image: tower(image, **options))(tower, image)


def pixels(spec, B=4):
  """Random normalised images of the tower's image size, float32 [B, H, W, 3]."""
  shape = (B, *both_sides(spec.image_size), 3)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)
