"""A model with its preprocessing and tokenizer, which encodes images and texts as unit vectors."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
import functools
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from clip_jax.data.read_ahead import batched, map_ahead
from clip_jax.errors import UserError
from clip_jax.inference import templates as prompts
from clip_jax.inference.caption_search import best_captions, decode_tokens
from clip_jax.inference.picture_inputs import pictures
from clip_jax.interfaces import Tokenizer
from clip_jax.model.text_decoder import TextDecoder
from clip_jax.model.two_towers import TwoTowers
from clip_jax.parallel.mesh import make_mesh
from clip_jax.parallel.placement import batch_sharding, replicated_sharding, to_global


class Embedder:
  """Encodes images and texts with a trained model.

  Attributes:
    model: the two towers.
    tokenize: list of str -> int32 [B, L].
    preprocess: encoded bytes, a PIL image or uint8 [H, W, 3] -> uint8 of the model's size.
    decoder: writes captions, for a model that was trained with `Captioner`; otherwise None.
    scale, bias: logit = scale * z_image @ z_text + bias, for unit vectors.
    mesh: the devices to run on.
    batch_size: the largest number of images or texts encoded at once.
    threads: number of threads that preprocess images.
  """

  def __init__(
    self,
    model: TwoTowers,
    preprocess: Callable[[Any], np.ndarray],
    tokenize: Tokenizer,
    *,
    scale: float = 100.0,
    bias: float = 0.0,
    decoder: TextDecoder | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 256,
    threads: int = 8,
  ):
    """Stores the attributes.

    `mesh` defaults to all devices, and `batch_size` is rounded up to a multiple of their number.
    """
    self.model, self.preprocess, self.tokenize = model, preprocess, tokenize
    self.scale, self.bias, self.decoder = scale, bias, decoder
    self.mesh = mesh or make_mesh()
    self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
    self.threads = threads

  def encode_image(self, images: Any) -> np.ndarray:
    """Encodes images as unit vectors, float32 [n, E].

    Args:
      images: one image, n = 1, or an iterable of images, each a path, encoded bytes, an open binary
        file, a PIL image or uint8 [H, W, 3]; or uint8 [n, H, W, 3].

    Raises:
      UserError: there are no images, or something else is among them.
    """
    images = pictures(images)
    made = map_ahead(self.preprocess, images, threads=self.threads, ahead=self.batch_size)
    with closing(made):
      return self._encoded(_images, map(np.stack, batched(made, self.batch_size)))

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes texts as unit vectors, float32 [n, E].

    Raises:
      UserError: there are no texts, or `texts` is a single string.
    """
    if isinstance(texts, str):
      raise UserError(f"encode_text takes a list of texts: use encode_text([{texts!r}]).")
    return self._encoded(_texts, map(self._tokens, batched(texts, self.batch_size)))

  def _tokens(self, texts):
    """Tokenizes texts and cuts padding that the text tower ignores."""
    cut = getattr(self.model.text, "cut_padding", None)
    tokens = self.tokenize(texts)
    return cut(tokens) if cut else tokens

  def similarity(self, images: Iterable[Any], texts: Sequence[str]) -> np.ndarray:
    """Returns the cosine similarity of every image with every text, float32 [images, texts].

    Takes what `encode_image` and `encode_text` take, and raises what they raise.
    """
    return self.encode_image(images) @ self.encode_text(texts).T

  def classify(
    self,
    images: Iterable[Any],
    labels: Sequence[str],
    *,
    templates: str | Sequence[str] = "none",
    multi_label: bool = False,
  ) -> np.ndarray:
    """Classifies images without training (zero-shot), as in the CLIP paper, section 3.1.

    Args:
      images: as for `encode_image`.
      labels: names or descriptions of the classes.
      templates: prompt templates such as "a photo of a {}.", or the name of a set, "openai_7" or
        "openai_80"; see `templates.templates`. "none" uses the labels as they are. The vector of a
        label is the normalised mean over the templates.
      multi_label: whether several labels may apply to an image. Each probability is then the
        sigmoid of its logit, meaningful only for models trained with a sigmoid loss (SigLIP).

    Returns:
      Probabilities, float32 [images, labels]; each row sums to 1 unless `multi_label`.

    Raises:
      UserError: no images or labels, `labels` is a single string, or a template is invalid.
    """
    from scipy import special  # Here, because its import is slow.

    if isinstance(labels, str):
      raise UserError(f"classify takes a list of labels: use classify(images, [{labels!r}, ...]).")
    forms = prompts.templates(templates if isinstance(templates, str) else tuple(templates))
    texts = [form.replace("{}", label) for label in labels for form in forms]
    z_text = self.encode_text(texts).reshape(len(labels), len(forms), -1).mean(axis=1)
    z_text /= np.maximum(np.linalg.norm(z_text, axis=1, keepdims=True), 1e-12)
    logits = self.scale * (self.encode_image(images) @ z_text.T) + self.bias
    if multi_label:
      return special.expit(logits)
    return special.softmax(logits, axis=1)

  def caption(self, images: Any, *, beams: int = 1, length_penalty: float = 0.6) -> list[str]:
    """Writes a caption for each image, with a model that was trained with `Captioner`.

    Args:
      images: as for `encode_image`.
      beams: number of captions that the search keeps at each step; 1 (default) takes the most
        probable token at each step.
      length_penalty: with several beams, the log-probability of a caption is divided by its number
        of tokens to this power.

    Raises:
      UserError: the model has no decoder, there are no images, or `beams` is below 1.
    """
    if self.decoder is None:
      raise UserError(
        "This model cannot write captions, because it was not trained to. Train one with "
        "--config=configs/captioner.py."
      )
    images = pictures(images)
    made = map_ahead(self.preprocess, images, threads=self.threads, ahead=self.batch_size)
    write = _writer(beams, length_penalty)
    with closing(made):
      pixels = map(np.stack, batched(made, self.batch_size))
      tokens = self._encoded(write, pixels, Captioning(self.model, self.decoder))
    return decode_tokens(self.tokenize, tokens)

  def encode_share(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes images that are spread over the hosts, each of which has preprocessed its share.

    Args:
      share: uint8 [n, H, W, 3], the preprocessed images of this host; n is the same on every host.

    Returns:
      The image tower's features, float32 [hosts * n, D], and the unit vectors, float32
      [hosts * n, E], in the order of the hosts. Every host receives all of them.
    """
    # Gather all pixels on every host, so that any mesh works, whatever its order of devices.
    batch = multihost_utils.process_allgather(share) if jax.process_count() > 1 else share
    return self.encode_pixels(np.asarray(batch).reshape(-1, *share.shape[1:]))

  def encode_pixels(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed images, uint8 [n, H, W, 3], in one batch -> features [n, D] and vectors [n, E].

    Both are float32: the output of the image tower, and unit vectors in the shared space.
    """
    return self._both(_features_too, pixels)

  def encode_tokens(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, int32 [n, L], in one batch -> text features [n, D] and unit vectors [n, E]."""
    return self._both(_text_features_too, tokens)

  def _both(self, method, batch):
    graphdef, arrays = nnx.split(self.model)
    with jax.set_mesh(self.mesh):
      made = _program(method, graphdef, self.mesh)(arrays, self._padded(batch))
    features, z = (np.asarray(x)[: len(batch)] for x in made)
    return features, z

  def _encoded(self, method, batches, model=None):
    """Encodes all batches, by `self.model` or another one, and concatenates the results.

    Batches are padded, so that few programs are compiled for any number of rows.
    """
    graphdef, arrays = nnx.split(self.model if model is None else model)
    out = []
    with jax.set_mesh(self.mesh):
      for batch in batches:
        z = _program(method, graphdef, self.mesh)(arrays, self._padded(batch))
        out.append(np.asarray(z)[: len(batch)])
    if not out:
      raise UserError("There is nothing to encode: the list is empty.")
    return np.concatenate(out)

  def _padded(self, batch):
    """Pads a batch with zeros and puts it on the devices.

    The number of rows becomes a power of two, or the next size that the devices divide.
    """
    size = max(self.mesh.size, 1 << (len(batch) - 1).bit_length())
    if len(batch) <= self.batch_size:
      size = min(size, self.batch_size)
    filled = np.zeros((-(-size // self.mesh.size) * self.mesh.size, *batch.shape[1:]), batch.dtype)
    filled[: len(batch)] = batch
    return to_global(filled, batch_sharding(self.mesh))


@functools.lru_cache(maxsize=16)
def _program(method: Callable, graphdef: Any, mesh: Mesh) -> Callable:
  """Returns the compiled encoder of a model structure on a mesh; its output is replicated."""

  def encode(arrays, x):
    return method(nnx.merge(graphdef, arrays), x)

  return jax.jit(
    encode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated_sharding(mesh)
  )


class Captioning(nnx.Module):
  """A model with its text decoder."""

  def __init__(self, model: TwoTowers, decoder: TextDecoder):
    self.model, self.decoder = model, decoder


@functools.cache
def _writer(beams, length_penalty):
  """Returns the function (model, images) -> tokens, always the same one, to compile it once."""

  def write(captioning, image):
    tokens, _ = captioning.model.image_tokens(image)
    return best_captions(captioning.decoder, tokens, beams=beams, length_penalty=length_penalty)

  return write


def _images(model, image):
  return model.encode_image(image)


def _texts(model, tokens):
  return model.encode_text(tokens)


def _text_features_too(model, tokens):
  features = model.text(tokens)
  return features.astype(jnp.float32), model.project_text(features)


def _features_too(model, image):
  features = model.image_features(image)
  return features.astype(jnp.float32), model.project_image(features)
