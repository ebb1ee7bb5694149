"""Protocols of the parts of a training run, their check, and the names of array dimensions.

Dimensions, used throughout this package:

  B  examples in the global batch     H, W  image height and width     N  patches, K of them kept
  L  context length in tokens         D     width of a tower           E  embedding dimension

A batch is a dict of arrays with leading axis B:

  image           uint8 [B, H, W, 3]   the view paired with the text
  view_a, view_b  uint8 [B, H, W, 3]   two additional views, for objectives that read them
  tokens          int32 [B, L]         0 is padding; [B, K, L] with K captions per image
  group           uint32 [B, 2]        hash of a field; rows with the same value are of one group
  index           int64 [B]            position of the record in the training data; int32 on the
                                       device if that is enough
  replaced        int32 [B]            unreadable records skipped before this one (host only)

Pixels are uint8, or float in [0, 1], until the model normalises them with its own mean and
standard deviation.
"""

from collections.abc import Callable, Iterator, Sequence
import inspect
import numbers
import typing
from typing import Any, Protocol

import jax
import numpy as np

from clip_jax.errors import UserError

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def batch_size_of(batch: dict[str, Any]) -> int:
  """Returns the number of examples in a batch, B; any of its entries gives it."""
  return next(iter(batch.values())).shape[0]


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


class Model(Protocol):
  """An image tower and a text tower that embed into one space."""

  image: ImageTower
  text: TextTower

  def image_features(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps pixels [B, H, W, 3], uint8 or float in [0, 1], to features [B, D]."""

  def project_image(self, features: jax.Array) -> jax.Array:
    """Maps the features of images, [B, D], to unit vectors, float32 [B, E]."""

  def encode_image(
    self, image: jax.Array, *, train: bool = False, keep: float = 1.0, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps pixels [B, H, W, 3], uint8 or float in [0, 1], to unit vectors, float32 [B, E]."""

  def encode_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps int32 [B, L], where 0 is padding, to unit vectors, float32 [B, E]."""


class Objective(Protocol):
  """A training loss; owns the learned scalars and heads that only the loss needs."""

  inputs: tuple[str, ...]  # Batch entries that it reads, which may include "index".

  def embed(
    self, model: Any, batch: Batch, *, train: bool, key: jax.Array | None
  ) -> dict[str, jax.Array]:
    """Computes per-example vectors, each [B, ...]; `key` [B] is one key per example."""

  def loss(self, embeddings: dict[str, jax.Array], *, train: bool) -> tuple[jax.Array, Metrics]:
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
  ways than by truncating the end: see `shorten` of `Views`.
  """

  context_length: int  # L

  @property
  def vocab_size(self) -> int:
    """Vocabulary size: token IDs are below it, and 0 is padding."""

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns token IDs, int32 [B, L]."""


class Views(Protocol):
  """Turns a record into an example; picklable."""

  tokenizer: Tokenizer

  @property
  def outputs(self) -> tuple[str, ...]:
    """Names of the entries of an example."""

  def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Maps a record to an example: arrays by name, without the batch axis."""


class HostAugment(Protocol):
  """Augments one image on the host."""

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Maps uint8 [H, W, 3] to uint8 [H, W, 3]."""


class DeviceAugment(Protocol):
  """Augments a whole batch entry on the device."""

  def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, 3] to float32 [B, H, W, 3] in [0, 1]; `key` [B] is one per example."""


class Optimizer(Protocol):
  """Turns gradients into updates, as `optax.GradientTransformation`."""

  @property
  def init(self) -> Callable:
    """(params) -> state."""

  @property
  def update(self) -> Callable:
    """(gradients, state, params) -> (updates, state)."""


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
  """Measures a model; `clip_jax.evaluators.Evaluator` is a base class without a figure.

  The `context` is a `clip_jax.evaluators.Context`: the model, and the results of the evaluators
  that ran before.
  """

  def evaluate(self, context: Any) -> Any:
    """Returns a `clip_jax.evaluators.Result`: metrics by name, and how they were obtained."""

  def figure(self, context: Any) -> Any:
    """Returns a PIL image of the results, or None."""


def check_part(part: Any, protocol: type, name: str) -> None:
  """Checks that a part has every attribute and method of its protocol.

  Methods are checked by whether they accept the protocol's arguments, attributes by their type if
  that is int, str, tuple or another protocol.

  Args:
    part: the part.
    protocol: a class of this module.
    name: where the part comes from, such as "config.objective", for the message.

  Raises:
    UserError: something is missing or different; the message lists all of it.
  """
  problems = list(_problems(part, protocol))
  if problems:
    article = "an" if protocol.__name__[0] in "AEIOU" else "a"
    raise UserError(
      f"{name}, {_described(part)}, is not {article} {protocol.__name__}: {'; '.join(problems)}. "
      f"clip_jax.interfaces.{protocol.__name__} documents what one needs."
    )
  for attribute, hint in _attributes(protocol):
    if _is_protocol(hint):
      check_part(getattr(part, attribute), hint, f"{name}.{attribute}")


def check_parts(arguments: dict[str, Any], hints: dict[str, Any], name: str) -> None:
  """Checks every argument whose type hint is a protocol, a sequence of one, or one or None.

  Args:
    arguments: values by name.
    hints: type hints by name.
    name: the function, for the message.
  """
  for argument, value in arguments.items():
    hint, many = hints.get(argument), False
    if typing.get_origin(hint) in (list, tuple, Sequence):
      hint, many = typing.get_args(hint)[0], True
    options = typing.get_args(hint) or (hint,)
    protocol = next((option for option in options if _is_protocol(option)), None)
    if protocol and value is not None:
      for one in value if many else (value,):
        check_part(one, protocol, f"{argument} of {name}")


_DUNDERS = ("__call__", "__len__", "__getitem__")
_KINDS: dict[Any, Any] = {int: numbers.Integral, str: str, tuple: (tuple, list)}


def _is_protocol(hint):
  return getattr(hint, "_is_protocol", False) and hint.__module__ == __name__


def _attributes(protocol: type) -> Iterator[tuple[str, Any]]:
  """Yields the attributes that a protocol declares, with their types."""
  yield from inspect.get_annotations(protocol).items()
  for name, value in vars(protocol).items():
    if isinstance(value, property):
      yield name, inspect.get_annotations(value.fget)["return"]


def _methods(protocol: type) -> Iterator[tuple[str, Callable]]:
  for name, value in vars(protocol).items():
    if inspect.isfunction(value) and (not name.startswith("_") or name in _DUNDERS):
      yield name, value


def _problems(part: Any, protocol: type) -> Iterator[str]:
  for name, hint in _attributes(protocol):
    kind = _KINDS.get(typing.get_origin(hint) or hint)
    if not hasattr(part, name):
      yield f"it has no {name}"
    elif kind and not isinstance(getattr(part, name), kind):
      yield f"its {name} is {getattr(part, name)!r}, not {getattr(hint, '__name__', hint)}"
  for name, wanted in _methods(protocol):
    # Python looks up `__call__` and the like on the class.
    if not callable(getattr(type(part) if name in _DUNDERS else part, name, None)):
      yield f"it has no {_form(name, wanted)}"
    elif problem := _mismatch(part if name == "__call__" else getattr(part, name), wanted):
      yield f"it cannot be called as {_form(name, wanted)}: {problem}"


def _mismatch(method: Callable, wanted: Callable) -> str | None:
  """Returns why a method does not accept the arguments of the protocol's, or None."""
  try:
    signature = inspect.signature(method)
  except (ValueError, TypeError):  # Written in C.
    return None
  parameters = list(inspect.signature(wanted).parameters.values())[1:]
  try:
    signature.bind(
      *(None for p in parameters if p.kind is not p.KEYWORD_ONLY),
      **{p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY},
    )
  except TypeError as error:
    return str(error)
  return None


def _form(name: str, wanted: Callable) -> str:
  """Formats a method with the names of its arguments, such as loss(embeddings, *, train)."""
  signature = inspect.signature(wanted)
  parameters = [
    p.replace(annotation=p.empty, default=p.empty) for p in list(signature.parameters.values())[1:]
  ]
  return name + str(inspect.Signature(parameters))


def _described(part: Any) -> str:
  name = getattr(part, "__name__", None)
  return name if isinstance(name, str) else type(part).__name__
