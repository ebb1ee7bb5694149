"""Models cut to the first entries of their embeddings."""

import dataclasses

from flax import nnx
import numpy as np
import pytest

from clip_jax.config import build
from clip_jax.errors import UserError
from clip_jax.inference.shorter_embedding import with_embed_dim
from clip_jax.model.learner import split_state
from clip_jax.pretrained.model_bundle import ModelBundle
from tiny import image_tower, model_call, text_tower


def bundle(**changes):
  depth = dict(depth=1, width=16, mlp_dim=16, num_heads=2)
  spec = model_call(image=image_tower(**depth), text=text_tower(**depth), **changes)
  _, params, stats = split_state(build(spec, rngs=nnx.Rngs(0)))
  return ModelBundle(spec, params, stats, 1.0, 0.0, None, None)


@pytest.mark.parametrize("changes", [{}, dict(image_projection="mlp", text_projection="affine")])
def test_the_vectors_are_normalised_prefixes(changes):
  whole = bundle(**changes, projection_hidden_dim=8)
  cut = with_embed_dim(whole, 5)
  assert cut.model.embed_dim == 5 and whole.model.embed_dim == 16
  features = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
  for side in ("image", "text"):
    z = []
    for saved in (whole, cut):
      model = build(saved.model, rngs=nnx.Rngs(1))
      nnx.update(model, nnx.State(saved.params))
      z.append(np.asarray(getattr(model, f"project_{side}")(features)))
    prefix = z[0][:, :5] / np.linalg.norm(z[0][:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(z[1], prefix, rtol=1e-5)


def test_lengths_that_a_model_does_not_have_are_errors():
  whole = bundle()
  assert with_embed_dim(whole, 16) is whole
  for embed_dim in (0, 17):
    with pytest.raises(UserError, match="not between 1 and 16"):
      with_embed_dim(whole, embed_dim)
  config = whole.model.copy_and_resolve_references()
  config.image_projection = "none"
  with pytest.raises(UserError, match="image_projection='none', so there is no matrix"):
    with_embed_dim(dataclasses.replace(whole, model=config), 8)
