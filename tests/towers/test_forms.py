"""Options that reproduce OpenAI's and SigLIP's towers, and the projections."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.model.two_towers import TwoTowers
from clip_jax.towers.clip_resnet import ClipResnet
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from tiny import LENGTH, SIZE, image_tower, largest_difference, text_tower

OPENAI = dict(
  pool="tok",
  class_position=True,
  pre_norm=True,
  patch_bias=False,
  norm_eps=1e-5,
  activation="quick_gelu",
)


def pixels(height=SIZE, width=SIZE, B=3):
  return np.random.default_rng(0).normal(size=(B, height, width, 3)).astype(np.float32)


def test_class_position_is_added_to_the_class_token():
  own = build(image_tower(**OPENAI), rngs=nnx.Rngs(0))
  assert own.positions.shape == (5, 32) and own.embedding.bias is None
  z = own(pixels())
  own.class_token[...] = own.class_token[...] + own.positions[0]
  own.positions[...] = own.positions[...].at[0].set(0)
  np.testing.assert_allclose(own(pixels()), z, atol=1e-5)
  own.positions[...] = own.positions[...].at[0].set(jnp.arange(32.0))
  assert largest_difference(own(pixels()), z) > 1e-3


def test_openais_form_never_drops_the_class_token():
  tower = build(image_tower(**OPENAI), rngs=nnx.Rngs(0))
  keys = jax.random.split(jax.random.key(0), 3)
  z = tower(pixels(), keep=0.25, key=keys)
  assert z.shape == (3, 32) and largest_difference(z, tower(pixels())) > 1e-3
  # If all patches are the same, dropping some changes nothing, as long as the class token is kept.
  tower.positions[...] = tower.positions[...].at[1:].set(0)
  flat = jnp.ones((3, SIZE, SIZE, 3))
  np.testing.assert_allclose(
    tower(flat, keep=0.5, key=keys)[0], tower(flat, keep=0.5, key=keys)[1], atol=1e-6
  )
  with pytest.raises(UserError, match='class_position=True gives .* needs pool="tok"'):
    build(image_tower(class_position=True), rngs=nnx.Rngs(0))


def test_pixels_that_do_not_fill_a_patch_can_be_dropped():
  tower = build(image_tower(image_size=(20, 17), drop_rest=True), rngs=nnx.Rngs(0))
  assert tower.positions.shape == (4, 32)
  x = pixels(20, 17)
  whole = build(image_tower(), rngs=nnx.Rngs(0))
  np.testing.assert_allclose(tower(x), whole(x[:, :16, :16]), atol=1e-6)


def test_epsilon_reaches_every_norm():
  for spec in (
    image_tower(pool="map", pre_norm=True, norm_eps=0.5),
    text_tower(norm_eps=0.5, pool="map"),
  ):
    tower = build(spec, rngs=nnx.Rngs(0))
    norms = [m for _, m in nnx.iter_modules(tower) if type(m).__name__ == "LayerNorm"]
    assert len(norms) >= 4 and all(m.norm_eps == 0.5 for m in norms)


def test_eot_pool_reads_the_first_end_token():
  spec = dict(causal=True, pool="eot", mask_padding=False)
  tokens = np.full((2, LENGTH), 7, np.int32)
  tokens[0, 3:], tokens[1, 5] = 63, 63  # Padded with the end token, then with another.
  tower = build(text_tower(**spec, eos_id=63), rngs=nnx.Rngs(0))
  z = tower(tokens)
  padded = np.where(np.arange(LENGTH) <= np.array([[3], [5]]), tokens, 0)
  np.testing.assert_allclose(build(text_tower(**spec), rngs=nnx.Rngs(0))(padded), z, atol=1e-6)
  np.testing.assert_allclose(tower(padded), z, atol=1e-6)


def model(**changes):
  spec = call(
    TwoTowers,
    image=image_tower(),
    text=text_tower(),
    **{**dict(embed_dim=32, image_projection="none", text_projection="affine"), **changes},
  )
  return build(spec, rngs=nnx.Rngs(0))


def test_linear_affine_and_no_projection():
  made = model()
  x, tokens = (
    np.uint8(255 * np.random.default_rng(0).random((2, SIZE, SIZE, 3))),
    np.ones((2, LENGTH), np.int32),
  )
  features = np.asarray(made.image_features(x))
  np.testing.assert_allclose(
    made.encode_image(x), features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5
  )
  made.text_projection.bias[...] = jnp.ones(32)
  features = made.text(tokens) @ made.text_projection.kernel[...] + 1
  np.testing.assert_allclose(
    made.encode_text(tokens), features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5
  )
  assert model(image_projection="linear").image_projection.bias is None
  with pytest.raises(
    UserError, match="text_projection is 'mpl'; TwoTowers expects .* Did you mean 'mlp'"
  ):
    model(text_projection="mpl")
  with pytest.raises(
    UserError, match="image tower's width is 32, not embed_dim=16. Set embed_dim=32"
  ):
    model(embed_dim=16)


def test_mlp_projection_matches_its_formula():
  made = model(
    image_projection="mlp", projection_hidden_dim=96, embed_dim=24, text_projection="linear"
  )
  x = np.uint8(255 * np.random.default_rng(0).random((2, SIZE, SIZE, 3)))
  projection, features = made.image_projection, np.asarray(made.image_features(x))
  projection.hidden.bias[...] = jnp.linspace(-1, 1, 96)
  normal = (features - features.mean(1, keepdims=True)) / features.std(1, keepdims=True)
  hidden = normal @ np.asarray(projection.hidden.kernel[...]) + np.linspace(-1, 1, 96)
  z = np.maximum(hidden, 0) @ np.asarray(projection.output.kernel[...])
  assert z.shape == (2, 24)
  np.testing.assert_allclose(
    made.encode_image(x), z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-5
  )


@pytest.mark.parametrize(
  "name, parameters", [("ViT-B/32", 151_277_313), ("ViT-L/14", 427_616_513), ("RN50", 102_007_137)]
)
def test_openais_models_have_the_published_number_of_parameters(name, parameters):
  form = dict(OPENAI, size=name[4], patch=int(name[6:])) if "ViT" in name else {}
  image = call(Vit, **form) if form else call(ClipResnet)
  text = call(
    TextTransformer,
    vocab_size=49_408,
    context_length=77,
    size="B" if "L" in name else "M",
    causal=True,
    pool="eot",
  )
  spec = call(
    TwoTowers,
    image=image,
    text=text,
    embed_dim={"L": 768, "B": 512}.get(name[4:5], 1024),
    image_projection="linear" if form else "affine",
  )
  made = jax.eval_shape(lambda key: build(spec, rngs=nnx.Rngs(key)), jax.random.key(0))
  # The logit scale belongs to the objective.
  assert sum(x.size for x in jax.tree.leaves(nnx.state(made, nnx.Param))) + 1 == parameters
