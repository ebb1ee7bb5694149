"""A model with its own preprocessing and tokenizer: images and texts in, unit vectors out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import itertools
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer
from clip_jax.model import TwoTowers
from clip_jax.sharding import make_mesh, replicated, rows


class Embedder:
  """Encodes pictures and sentences with a trained model.

  Attributes:
    model: the two towers.
    tokenize: list of str -> int32 [B, L].
    preprocess: encoded bytes, a PIL image or uint8 [H, W, 3] -> uint8 of the model's size.
    scale, bias: what turns a product of unit vectors into a logit: scale * z_image @ z_text + bias.
  """

  def __init__(self, model: TwoTowers, preprocess: Callable[[Any], np.ndarray],
               tokenize: Tokenizer, *, scale: float = 100.0, bias: float = 0.0,
               mesh: Mesh | None = None, batch_size: int = 256, threads: int = 8):
    """Args: as the attributes; `batch_size` is rounded up to what `mesh` (all devices) divides."""
    self.model, self.preprocess, self.tokenize = model, preprocess, tokenize
    self.scale, self.bias = scale, bias
    self.mesh = mesh or make_mesh()
    self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
    self.threads = threads

  def encode_image(self, images: np.ndarray | Iterable[Any]) -> np.ndarray:
    """Unit vectors of images, float32 [n, E].

    Args:
      images: uint8 [n, H, W, 3], or any number of encoded bytes, PIL images or uint8 arrays.
    """
    with ThreadPoolExecutor(self.threads) as pool:
      made = (np.stack(list(pool.map(self.preprocess, piece)))
              for piece in _batched(images, self.batch_size))
      return self._encoded(_images, made)

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of texts, float32 [n, E]."""
    if isinstance(texts, str):
      raise UserError(f"encode_text takes a list of texts, not one: encode_text([{texts!r}]).")
    return self._encoded(_texts, map(self.tokenize, _batched(texts, self.batch_size)))

  def encode_share(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and unit vectors of images that every host has preprocessed a part of.

    Args:
      share: uint8 [n, H, W, 3], this host's, `preprocess`ed; n is the same on every host.

    Returns:
      float32 [hosts * n, D] and [hosts * n, E], the same on every host: the tower's output, and
      what `encode_image` gives; host after host.
    """
    # Every host gets all pixels, and its devices theirs of them: on any mesh, devices in any order.
    batch = multihost_utils.process_allgather(share) if jax.process_count() > 1 else share
    batch = np.asarray(batch).reshape(-1, *share.shape[1:])
    graphdef, arrays = nnx.split(self.model)
    with jax.set_mesh(self.mesh):
      made = _program(_features_too, graphdef, self.mesh)(
          arrays, self._on_device(self._filled(batch)))
    features, z = (np.asarray(x)[:len(batch)] for x in made)
    return features, z

  def _encoded(self, method, batches):
    """All rows of all batches, each batch filled up so that few programs serve every number."""
    graphdef, arrays = nnx.split(self.model)
    out = []
    with jax.set_mesh(self.mesh):
      for batch in batches:
        z = _program(method, graphdef, self.mesh)(arrays, self._on_device(self._filled(batch)))
        out.append(np.asarray(z)[:len(batch)])
    if not out:
      raise UserError("There is nothing to encode: an empty list was given.")
    return np.concatenate(out)

  def _filled(self, batch):
    """The rows, and zeros up to a power of two that the devices share."""
    size = max(self.mesh.size, 1 << (len(batch) - 1).bit_length())
    if len(batch) <= self.batch_size:
      size = min(size, self.batch_size)
    filled = np.zeros((-(-size // self.mesh.size) * self.mesh.size, *batch.shape[1:]), batch.dtype)
    filled[:len(batch)] = batch
    return filled

  def _on_device(self, batch):
    # Every process has every row; whichever its devices hold, it gives them.
    return jax.make_array_from_callback(batch.shape, rows(self.mesh), lambda index: batch[index])


@functools.lru_cache(maxsize=16)
def _program(method: Callable, graphdef: Any, mesh: Mesh) -> Callable:
  """The compiled encoder of one model structure on one mesh; every process gets every row."""
  def encode(arrays, x):
    return method(nnx.merge(graphdef, arrays), x)
  return jax.jit(encode, in_shardings=(None, rows(mesh)), out_shardings=replicated(mesh))


def _images(model, image):
  return model.encode_image(image)


def _texts(model, tokens):
  return model.encode_text(tokens)


def _features_too(model, image):
  features = model.image_features(image)
  return features.astype(jnp.float32), model.project_image(features)


def _batched(items: Iterable[Any], n: int) -> Iterator[list[Any]]:
  items = iter(items)
  while piece := list(itertools.islice(items, n)):
    yield piece
