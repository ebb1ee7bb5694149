"""The model, two towers and two projections; and the learner, a model with its objective."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.interfaces import ImageTower, Objective, TextTower
from clip_jax.layers import LayerNorm, Linear, normal

PROJECTIONS = ("linear", "affine", "mlp", "none")


class TwoTowers(nnx.Module):
  """An image tower and a text tower with projections into one space; what a training run is for.

  Args:
    image, text: the towers.
    embed: size of the shared embedding, E.
    image_projection, text_projection: from features to the embedding: "linear", a matrix; "affine",
      with a bias; "mlp", a norm, a hidden layer and a matrix; "none", the features are the
      embedding (SigLIP's images; E must be their width).
    hidden: width of the hidden layer of "mlp".
    mean, std: of the three channels, for pixels in [0, 1]; the defaults map them to [-1, 1].

  Source: Radford et al. 2021, fig. 3; bias-free projections with deviation D^-0.5.
  """

  def __init__(self, *, image: ImageTower, text: TextTower, embed: int = 512,
               image_projection: str = "linear", text_projection: str = "linear",
               hidden: int = 4096,
               mean: tuple[float, ...] = (0.5, 0.5, 0.5), std: tuple[float, ...] = (0.5, 0.5, 0.5),
               rngs: nnx.Rngs):
    self.image, self.text = image, text
    self.image_projection = _projection("image", image_projection, image.width, embed, hidden, rngs)
    self.text_projection = _projection("text", text_projection, text.width, embed, hidden, rngs)
    self.mean, self.std = tuple(mean), tuple(std)

  def image_features(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
                     key: jax.Array | None = None) -> jax.Array:
    """Pixels [B, H, W, 3], uint8 or float in [0, 1] -> [B, D], before the projection."""
    with jax.named_scope("image_tower"):
      return self.image(self.normalised(image), train=train, keep=keep, key=key)

  def normalised(self, image: jax.Array) -> jax.Array:
    """Pixels, uint8 or float in [0, 1] -> float32 with this model's mean and deviation."""
    if image.dtype == jnp.uint8:
      image = image.astype(jnp.float32) / 255
    return (image - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

  def project_image(self, features: jax.Array) -> jax.Array:
    """[B, D] -> float32 [B, E], unit length."""
    with jax.named_scope("image_tower"):
      return unit(_projected(self.image_projection, features))

  def encode_image(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
                   key: jax.Array | None = None) -> jax.Array:
    """Pixels [B, H, W, 3], uint8 or float in [0, 1] -> float32 [B, E], unit length."""
    return self.project_image(self.image_features(image, train=train, keep=keep, key=key))

  def encode_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """int32 [B, L], 0 is padding -> float32 [B, E], unit length."""
    with jax.named_scope("text_tower"):
      return unit(_projected(self.text_projection, self.text(tokens, train=train)))


class MlpProjection(nnx.Module):
  """A norm, a hidden layer with ReLU, and a matrix.

  A wide one is close to regression with a kernel: with a few thousand pairs it finds more in the
  same features than a matrix does.
  """

  def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(inputs)
    self.hidden = Linear(inputs, hidden, init=jax.nn.initializers.he_normal(), rngs=rngs)
    self.output = Linear(hidden, outputs, bias=False, init=normal(hidden**-0.5), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, inputs] -> float32 [B, outputs]."""
    return self.output(jax.nn.relu(self.hidden(self.norm(x))))


def _projection(name, kind, width, embed, hidden, rngs):
  if kind not in PROJECTIONS:
    raise UserError(f"There is no {name}_projection {kind!r}; there are {', '.join(PROJECTIONS)}.")
  if kind == "none":
    if width != embed:
      raise UserError(f'{name}_projection="none" needs features as wide as the embedding, and '
                      f"the {name} tower has {width}, not embed={embed}. Set embed={width}, or "
                      "project.")
    return None
  if kind == "mlp":
    return MlpProjection(width, hidden, embed, rngs=rngs)
  return Linear(width, embed, bias=kind == "affine", init=normal(width**-0.5), rngs=rngs)


def _projected(projection, features):
  return features.astype(jnp.float32) if projection is None else projection(features)


def unit(x: jax.Array) -> jax.Array:
  """Rows scaled to length 1; a row of zeros stays, with a gradient of zero."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class Learner(nnx.Module):
  """What is trained: a model and the objective it is trained for."""

  def __init__(self, model: TwoTowers, objective: Objective):
    self.model, self.objective = model, objective


def split(module: nnx.Module) -> tuple[Any, dict, dict]:
  """Takes a module apart: its structure, its trained arrays, its other arrays, as plain dicts."""
  graphdef, params, stats = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def bounds(module: nnx.Module) -> dict:
  """(low, high) of every trained array, from `nnx.Param(..., at_least=, at_most=)`.

  Returns:
    Pairs of floats, infinite where there is no bound; a tree like the trained arrays of `split`.
  """
  _, params, _ = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

  def of(variable):
    metadata = variable.get_metadata()
    return metadata.get("at_least", -np.inf), metadata.get("at_most", np.inf)

  is_variable = lambda v: isinstance(v, nnx.Variable)
  return nnx.to_pure_dict(jax.tree.map(of, params, is_leaf=is_variable))


def check_tokens(text: TextTower, tokenizer: Any) -> None:
  """Raises unless the text tower takes the tokens that the tokenizer writes."""
  if tokenizer.length != text.length:
    raise UserError(f"The tokenizer writes {tokenizer.length} tokens a text and the text tower "
                    f"takes {text.length}. Set both lengths to the same.")
  if tokenizer.vocabulary > text.vocabulary:
    raise UserError(f"The tokenizer knows {tokenizer.vocabulary} tokens and the text tower only "
                    f"{text.vocabulary}. Set its vocabulary to {tokenizer.vocabulary} or more.")
