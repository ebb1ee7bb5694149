"""Protocols of the parts of a training run, and the names of array dimensions.

Dimensions, used throughout this package:

  B  examples in the global batch     H, W  image height and width     N  patches, K of them kept
  L  context length in tokens         D     width of a tower           E  embedding dimension

A batch is a dict of arrays with leading axis B:

  image           uint8 [B, H, W, 3]   the view paired with the text
  view_a, view_b  uint8 [B, H, W, 3]   two additional views, for objectives that read them
  tokens          int32 [B, L]         0 is padding
  index           int64 [B]            position of the example in its source (host only)
  replaced        int32 [B]            unreadable records skipped before this one (host only)

Pixels are uint8, or float in [0, 1], until the model normalises them with its own mean and
standard deviation.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class ImageTower(Protocol):
  """Maps images to features."""

  width: int  # D
  image_size: tuple[int, int]  # (H, W) that it is built for, or that its images are resized to.

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps normalised float [B, H, W, 3] to [B, D].

    With `keep` < 1, all but that fraction of the patches are dropped at random, using `key` [B].
    """


class TextTower(Protocol):
  """Maps texts to features."""

  width: int  # D
  context_length: int  # L
  vocab_size: int  # Token IDs are below this.

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps int32 [B, L], where 0 is padding, to [B, D]."""


class Objective(Protocol):
  """A training loss; owns the learned scalars and heads that only the loss needs."""

  inputs: tuple[str, ...]  # Batch entries that it reads; checked before anything is compiled.

  def embed(
    self, model: Any, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Computes per-example vectors, each [B, ...]; `key` [B] is one key per example."""

  def loss(self, embeddings: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
    """Returns the loss over all rows, float32 [], and scalars to log."""

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """Returns (scale, bias), float32 [] each: logit = scale * cosine similarity + bias."""


class Source(Protocol):
  """Random access to records; picklable. Compatible with Grain's RandomAccessDataSource."""

  def __len__(self) -> int:
    """Returns the number of records."""

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Returns {"image": encoded bytes or uint8 [H, W, 3], "text": str or list of str, ...}."""


class Tokenizer(Protocol):
  """Maps texts to token IDs; picklable.

  A tokenizer that also accepts `keep=`, as those in this package do, can shorten texts in other
  ways than by truncating the end: see `data.shorten`.
  """

  context_length: int  # L

  @property
  def vocab_size(self) -> int:
    """Vocabulary size: token IDs are below it, and 0 is padding."""

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns token IDs, int32 [B, L]."""


class HostAugment(Protocol):
  """Augments one image on the host."""

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Maps uint8 [H, W, 3] to uint8 [H, W, 3]."""


class DeviceAugment(Protocol):
  """Augments a whole batch entry on the device."""

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, 3] to float32 [B, H, W, 3] in [0, 1]; `key` [B] is one per example."""


class Embedder(Protocol):
  """A model with its own preprocessing and tokenizer."""

  def encode_image(self, images: Any) -> np.ndarray:
    """Encodes images as unit vectors, float32 [B, E].

    Args:
      images: uint8 [B, H, W, 3], or a list of PIL images, arrays or encoded bytes.
    """

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes texts as unit vectors, float32 [B, E]."""


class Evaluator(Protocol):
  """Computes metrics of a model.

  May also have `answer(embedder)`, which returns an `answers.Answer` with details on how the
  metrics were obtained, and `picture(embedder)`, which returns a PIL image of the results.
  """

  def __call__(self, embedder: Embedder) -> dict[str, float]:
    """Returns metrics by name."""
