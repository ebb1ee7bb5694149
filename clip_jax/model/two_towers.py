"""The two-tower model: image and text towers with projections into a shared embedding space."""

from typing import Any, Literal

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import PositiveFloat, Width, checked
from clip_jax.errors import UserError
from clip_jax.interfaces import ImageTower, TextTower
from clip_jax.nn.layers import LayerNorm, Linear, activate, normal

FEATURES = "features"  # Name of the towers' outputs, for rematerialisation policies.
Projection = Literal["linear", "affine", "mlp", "gelu_mlp", "none"]


@checked
class TwoTowers(nnx.Module):
  """An image tower and a text tower, each with a projection into a shared embedding space.

  Args:
    image, text: the towers.
    embed_dim: size of the shared embedding, E.
    image_projection, text_projection: maps features to the embedding: "linear", a matrix; "affine",
      a matrix and a bias; "mlp", a norm, a hidden layer and a matrix; "gelu_mlp", a hidden layer
      with GELU and a matrix, as some of open_clip's; "none", the identity, which needs features of
      width E (SigLIP's image tower).
    projection_hidden_dim: width of the hidden layer of an "mlp" or "gelu_mlp" projection.
    mean, std: normalisation of the three channels, for pixels in [0, 1]; the defaults map pixels to
      [-1, 1].

  Source: Radford et al. 2021, fig. 3; projections are initialised with standard deviation D^-0.5.
  """

  def __init__(
    self,
    *,
    image: ImageTower,
    text: TextTower,
    embed_dim: Width = 512,
    image_projection: Projection = "linear",
    text_projection: Projection = "linear",
    projection_hidden_dim: Width = 4096,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5),
    rngs: nnx.Rngs,
  ):
    self.image, self.text = image, text
    self.image_projection = _projection(
      "image", image_projection, image.width, embed_dim, projection_hidden_dim, rngs
    )
    self.text_projection = _projection(
      "text", text_projection, text.width, embed_dim, projection_hidden_dim, rngs
    )
    self.mean, self.std = tuple(mean), tuple(std)
    self.frozen_towers: tuple[str, ...] = ()  # Run as in inference; see `model.frozen`.

  def image_features(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Pixels [B, H, W, 3], uint8 or float in [0, 1] -> features [B, D], before the projection.

    Stored features, float [B, D], are returned as they are.
    """
    if image.ndim == 2:
      return _stored(image, self.image.width, "image")
    with jax.named_scope("image_tower"):
      train = train and "image" not in self.frozen_towers
      x = self.image(self.normalise_pixels(image), train=train, keep=keep, key=key)
      return checkpoint_name(x, FEATURES)

  def image_tokens(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Pixels [B, H, W, 3] -> tokens [B, N, D'] and features [B, D] of a tower that has tokens."""
    with jax.named_scope("image_tower"):
      train = train and "image" not in self.frozen_towers
      tower: Any = self.image
      tokens = tower.tokens(self.normalise_pixels(image), train=train, keep=keep, key=key)
      return tokens, checkpoint_name(tower.pooled(tokens), FEATURES)

  def normalise_pixels(self, image: jax.Array) -> jax.Array:
    """Normalises pixels, uint8 or float in [0, 1], to float32 with the model's mean and std."""
    if image.dtype == jnp.uint8:
      image = image.astype(jnp.float32) / 255
    return (image - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

  def project_image(self, features: jax.Array) -> jax.Array:
    """Features [B, D] -> float32 [B, E], unit length."""
    with jax.named_scope("image_tower"):
      return l2_normalize(_project(self.image_projection, features))

  def encode_image(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Pixels [B, H, W, 3], uint8 or float in [0, 1] -> float32 [B, E], unit length."""
    return self.project_image(self.image_features(image, train=train, keep=keep, key=key))

  def encode_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Token ids, int32 [B, L], padded with 0 -> float32 [B, E], unit length.

    Stored features, float [B, D], can take the place of the tokens.
    """
    if jnp.issubdtype(tokens.dtype, jnp.floating):
      return self.project_text(_stored(tokens, self.text.width, "text"))
    with jax.named_scope("text_tower"):
      train = train and "text" not in self.frozen_towers
      x = checkpoint_name(self.text(tokens, train=train), FEATURES)
      return self.project_text(x)

  def project_text(self, features: jax.Array) -> jax.Array:
    """Features of texts, [B, D] -> float32 [B, E], unit length."""
    with jax.named_scope("text_tower"):
      return l2_normalize(_project(self.text_projection, features))


class MlpProjection(nnx.Module):
  """A projection by a norm, a hidden layer with ReLU, and a matrix.

  With a wide hidden layer it approximates kernel regression, which gets more out of the same
  features than a linear projection when trained on a few thousand pairs.
  """

  def __init__(self, inputs: int, hidden_dim: int, outputs: int, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(inputs)
    self.hidden = Linear(inputs, hidden_dim, init=jax.nn.initializers.he_normal(), rngs=rngs)
    self.output = Linear(hidden_dim, outputs, bias=False, init=normal(hidden_dim**-0.5), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, inputs] -> float32 [B, outputs]."""
    return self.output(jax.nn.relu(self.hidden(self.norm(x))))


class GeluProjection(nnx.Module):
  """A projection by a hidden layer with GELU, and a matrix."""

  def __init__(self, inputs: int, hidden_dim: int, outputs: int, *, rngs: nnx.Rngs):
    self.hidden = Linear(inputs, hidden_dim, rngs=rngs)
    self.output = Linear(hidden_dim, outputs, bias=False, init=normal(hidden_dim**-0.5), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, inputs] -> float32 [B, outputs]."""
    return self.output(activate(self.hidden(x), "gelu"))


def _projection(name, kind, width, embed_dim, hidden_dim, rngs):
  if kind == "none":
    if width != embed_dim:
      raise UserError(
        f'{name}_projection="none" needs features as wide as the embedding, but '
        f"the {name} tower's width is {width}, not embed_dim={embed_dim}. Set embed_dim={width}, "
        "or choose another projection."
      )
    return None
  if kind == "mlp":
    return MlpProjection(width, hidden_dim, embed_dim, rngs=rngs)
  if kind == "gelu_mlp":
    return GeluProjection(width, hidden_dim, embed_dim, rngs=rngs)
  return Linear(width, embed_dim, bias=kind == "affine", init=normal(width**-0.5), rngs=rngs)


def _stored(features, width, tower):
  if features.shape[-1] != width:
    raise UserError(
      f"The stored {tower} features have {features.shape[-1]} entries, but the {tower} tower's "
      f"width is {width}. Store those of the model that is trained, with clip-jax embed."
    )
  return features.astype(jnp.float32)


def _project(projection, features):
  return features.astype(jnp.float32) if projection is None else projection(features)


def l2_normalize(x: jax.Array) -> jax.Array:
  """Scales vectors along the last axis to unit L2 norm; zeros stay zeros, with a zero gradient."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
