"""Text towers, and features that only some image towers have."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.towers.resnet import BitResnet, GroupNorm, StdConv
from clip_jax.towers.sizes import SIZES
from tiny import LENGTH, batch, image_tower, largest_difference, text_tower
from tiny_towers import IMAGE_TOWERS, pixels, with_arguments

TEXT_TOWERS = {
  "last": text_tower(mask_padding=False),
  "eot": text_tower(pool="eot", causal=True),
  "mean": text_tower(pool="mean"),
  "map": text_tower(pool="map"),
  "words": text_tower(pool="mean", depth=0),
}


def test_keep_1_drops_no_patches():
  tower, x = build(IMAGE_TOWERS["vit-gap"], rngs=nnx.Rngs(0)), pixels(IMAGE_TOWERS["vit-gap"])
  np.testing.assert_array_equal(tower(x), tower(x, keep=1.0, key=None))


def test_mean_pooling_depends_on_patch_positions():
  tower = build(IMAGE_TOWERS["vit-gap"], rngs=nnx.Rngs(0))
  x = pixels(IMAGE_TOWERS["vit-gap"])
  assert largest_difference(tower(x), tower(x[:, :, ::-1])) > 1e-3


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_text_towers_return_one_vector_per_text(name):
  tower = build(TEXT_TOWERS[name], rngs=nnx.Rngs(0))
  z = tower(batch(4)["tokens"])
  assert z.shape == (4, tower.width) and bool(jnp.isfinite(z).all())


@pytest.mark.parametrize("name", ["eot", "mean", "map"])
def test_padding_does_not_change_the_features(name):
  tokens = np.zeros((1, LENGTH), np.int32)
  tokens[0, :3] = 5, 6, 7
  tower = build(TEXT_TOWERS[name], rngs=nnx.Rngs(0))
  z = tower(tokens)
  tower.positions[...] = tower.positions[...].at[3:].multiply(-1)
  tower.embedding[...] = tower.embedding[...].at[0].multiply(-1)
  np.testing.assert_allclose(tower(tokens), z, atol=1e-6)


def test_id_zero_inside_a_text_is_not_padding():
  tower = build(TEXT_TOWERS["mean"], rngs=nnx.Rngs(0))
  tokens = np.zeros((2, LENGTH), np.int32)
  tokens[:, :3] = (5, 0, 7), (5, 9, 7)
  z = tower(tokens)
  tower.embedding[...] = tower.embedding[...].at[0].multiply(-1)
  assert largest_difference(tower(tokens)[0], z[0]) > 1e-4
  np.testing.assert_allclose(tower(tokens)[1], z[1], atol=1e-6)


def test_a_causal_tower_does_not_see_later_tokens():
  tower = build(text_tower(causal=True, pool="last"), rngs=nnx.Rngs(0))
  tower.pool = "all"
  early = np.full((1, LENGTH), 3, np.int32)
  late = early.copy()
  late[0, -1] = 4
  embed = lambda tokens: tower.stack(tower.embedding[...][tokens], tower._mask(tokens, tokens != 0))
  np.testing.assert_allclose(embed(early)[:, :-1], embed(late)[:, :-1], atol=1e-6)
  assert largest_difference(embed(early)[:, -1], embed(late)[:, -1]) > 1e-3


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_features_of_an_empty_text_are_finite(name):
  z = build(TEXT_TOWERS[name], rngs=nnx.Rngs(0))(np.zeros((2, LENGTH), np.int32))
  assert bool(jnp.isfinite(z).all())


def test_group_norm_normalises_groups_of_channels():
  x = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 6)).astype(np.float32)
  z = np.asarray(GroupNorm(6, 2)(x))
  for b in range(2):
    for group in (slice(0, 3), slice(3, 6)):
      part = x[b, :, :, group]
      np.testing.assert_allclose(z[b, :, :, group], (part - part.mean()) / part.std(), atol=1e-4)


def test_weight_standardisation_preserves_the_variance():
  conv = StdConv(4, 5, 3, rngs=nnx.Rngs(0))
  conv.kernel[...] = 7 * conv.kernel[...] + 3
  x = np.zeros((1, 5, 5, 4), np.float32)
  x[0, 2, 2] = np.eye(4)[1]
  # The response to a unit impulse is the kernel, mirrored.
  response = np.stack([np.asarray(conv(np.roll(x, c, axis=3)))[0, 1:4, 1:4] for c in range(4)])
  np.testing.assert_allclose(response.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(np.square(response).sum((0, 1, 2)), 1, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_width_of_every_size_is_divisible_by_its_heads(size):
  width, _, _, heads = SIZES[size]
  assert width % heads == 0


def test_invalid_arguments_are_reported():
  rngs = nnx.Rngs(0)
  with pytest.raises(UserError, match="size is 'XXL'; Vit expects 'mu', 'Ti'"):
    build(image_tower(size="XXL"), rngs=rngs)
  with pytest.raises(UserError, match="pool is 'max'; Vit expects 'gap', 'tok', 'map'"):
    build(image_tower(pool="max"), rngs=rngs)
  with pytest.raises(UserError, match="positions is 'some'; Vit expects"):
    build(image_tower(positions="some"), rngs=rngs)
  with pytest.raises(UserError, match="20 x 20 image cannot be divided into 8 x 8.*height: 16"):
    build(image_tower(image_size=20), rngs=rngs)
  with pytest.raises(UserError, match="expected images of 16 x 16, but got 8 x 16"):
    build(image_tower(), rngs=rngs)(jnp.zeros((1, 8, 16, 3)))
  with pytest.raises(UserError, match="layers is 34; BitResnet expects 26, 50, 101"):
    build(call(BitResnet, layers=34), rngs=rngs)
  with pytest.raises(UserError, match="needs layers, one of 26, 50, 101, 152, or stages"):
    build(call(BitResnet, layers=None), rngs=rngs)
  with pytest.raises(UserError, match="block is 'tall'; BitResnet expects"):
    build(call(BitResnet, block="tall"), rngs=rngs)
  with pytest.raises(UserError, match="stem is 'tiny'; BitResnet expects"):
    build(call(BitResnet, stem="tiny"), rngs=rngs)
  with pytest.raises(UserError, match="pool is 'max'; BitResnet expects 'gap' or 'flat'"):
    build(call(BitResnet, pool="max"), rngs=rngs)
  with pytest.raises(UserError, match='pool="flat" expected images of 16 x 20, but got 32 x 20'):
    build(with_arguments(IMAGE_TOWERS["resnet-flat"], image_size=(16, 20)), rngs=rngs)(
      jnp.zeros((1, 32, 20, 3))
    )
  with pytest.raises(UserError, match="8 channels cannot be divided into 32 groups.*groups=8"):
    build(call(BitResnet, stages=(1,), width=8), rngs=rngs)
  with pytest.raises(UserError, match="drops patches, but a ResNet has none. Set the objective's"):
    build(IMAGE_TOWERS["resnet"], rngs=rngs)(pixels(IMAGE_TOWERS["resnet"]), keep=0.5)
  with pytest.raises(UserError, match="pool is 'some'; TextTransformer expects"):
    build(text_tower(pool="some"), rngs=rngs)
  with pytest.raises(UserError, match="expected 8 tokens per text, but got 5"):
    build(text_tower(), rngs=rngs)(jnp.zeros((1, 5), jnp.int32))
