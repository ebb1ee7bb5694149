"""The shape glossary, and what each kind of part promises.

Shapes, everywhere in this package:

  B  examples in the global batch     H, W  image height and width     N  patches, K of them kept
  L  text tokens                      D     a tower's width            E  shared embedding

A batch is a dict of arrays, whose first axis is B:

  image           uint8 [B, H, W, 3]   the view paired with the text
  view_a, view_b  uint8 [B, H, W, 3]   two more views, when the objective reads them
  tokens          int32 [B, L]         0 is padding
  index           int64 [B]            the example's place in its source (host only)
  replaced        int32 [B]            unreadable records tried before this one (host only)

Pixels are uint8, or float in [0, 1], until the model applies its own mean and deviation.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class ImageTower(Protocol):
  """Images to features."""

  width: int                   # D
  image_size: tuple[int, int]  # (H, W) that it is made for, or that its images are resized to.

  def __call__(self, image: jax.Array, *, train: bool = False, keep: float = 1.0,
               key: jax.Array | None = None) -> jax.Array:
    """float [B, H, W, 3], normalised -> [B, D]; `keep` < 1 drops patches at random by `key` [B]."""


class TextTower(Protocol):
  """Texts to features."""

  width: int       # D
  length: int      # L
  vocabulary: int  # Token numbers are below it.

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """int32 [B, L], 0 is padding -> [B, D]."""


class Objective(Protocol):
  """What a model is trained for; owns the learned scalars and heads that only its loss needs."""

  inputs: tuple[str, ...]  # Batch entries read; checked before anything is compiled.

  def embed(self, model: Any, batch: Batch, *, train: bool,
            key: jax.Array | None) -> dict[str, jax.Array]:
    """Per-example vectors, each [B, ...]; `key` is one key per example, [B]."""

  def loss(self, embeddings: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
    """float32 [] and scalars to log, from all rows at once."""

  def logit(self) -> tuple[jax.Array, jax.Array]:
    """(scale, bias) that turn a product of unit vectors into a logit; float32 [] each."""


class Source(Protocol):
  """Random access to records; picklable. Grain's RandomAccessDataSource."""

  def __len__(self) -> int:
    """Number of records."""

  def __getitem__(self, i: int) -> dict[str, Any]:
    """{"image": encoded bytes or uint8 [H, W, 3], "text": str or list of str, ...}."""


class Tokenizer(Protocol):
  """Texts to token numbers; picklable.

  One that takes `keep=` as well, as those of this package, can shorten texts in other ways than by
  their end: see `data.shorten`.
  """

  length: int  # L

  @property
  def vocabulary(self) -> int:
    """Token numbers are below it; 0 is padding."""

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [B, L]."""


class HostAugment(Protocol):
  """One image on the host."""

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W, 3]."""


class DeviceAugment(Protocol):
  """A whole batch entry on the device."""

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> float32 [B, H, W, 3] in [0, 1]; `key` is one key per example, [B]."""


class Embedder(Protocol):
  """A model with its own preprocessing and tokenizer."""

  def encode_image(self, images: Any) -> np.ndarray:
    """uint8 [B, H, W, 3], or a list of PIL images, arrays or encoded bytes -> float32 [B, E]."""

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Texts -> float32 [B, E], unit length."""


class Evaluator(Protocol):
  """A question asked of a model.

  May also have `answer(embedder)`, an `answers.Answer` with the detail that makes the numbers worth
  trusting, and `picture(embedder)`, a PIL image of the answer.
  """

  def __call__(self, embedder: Embedder) -> dict[str, float]:
    """Values by name."""
