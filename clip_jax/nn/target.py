"""The platform that the current trace will run on, and the dtype to compute in there."""

from collections.abc import Iterator
import contextlib
from contextvars import ContextVar
from typing import Annotated

import jax

from clip_jax.cli.values import OneOf
from clip_jax.errors import UserError
from clip_jax.nn.processor import processor_dtype

_any_platform = ContextVar("any_platform", default=False)
DTYPES = ("auto", "bfloat16", "float16", "float32")
Dtype = Annotated[str, OneOf(DTYPES)]


def target_platform() -> str:
  """Returns the platform that the current trace will run on: "cpu", "gpu" or "tpu".

  It is the platform of the current mesh's devices, which may be abstract; without a mesh, that of
  JAX's default backend.
  """
  if _any_platform.get():
    return "cpu"
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return getattr(device, "platform", None) or jax.default_backend()


def is_single_device() -> bool:
  """Returns whether the current mesh has one device; True without a mesh."""
  return jax.sharding.get_abstract_mesh().size <= 1


def rounds_products_only(dtype: str) -> bool:
  """Returns whether a tower that computes in `dtype` is to round only the inputs of its products.

  It is True for bfloat16 on a CPU; see `clip_jax.nn.matmul`.
  """
  return dtype == "bfloat16" and target_platform() == "cpu" and not _any_platform.get()


@contextlib.contextmanager
def any_platform() -> Iterator[None]:
  """Context in which traced programs can run on every platform: they are traced as for a CPU."""
  token = _any_platform.set(True)
  try:
    yield
  finally:
    _any_platform.reset(token)


def resolve_dtype(dtype: str, *, convolutional: bool = False) -> str:
  """Returns the dtype to compute in: "auto" is bfloat16 on a TPU or GPU.

  On a CPU it is that of `processor.processor_dtype`, and always float32 for towers of convolutions,
  which no CPU computes faster in bfloat16.

  Args:
    dtype: a name in `DTYPES`.
    convolutional: whether the tower consists of convolutions rather than matrix products.

  Raises:
    UserError: the name is not in `DTYPES`.
  """
  if dtype not in DTYPES:
    raise UserError(f"Unknown dtype={dtype!r}; choose from {', '.join(DTYPES)}.")
  if dtype != "auto":
    return dtype
  if target_platform() != "cpu":
    return "bfloat16"
  return "float32" if convolutional or _any_platform.get() else processor_dtype()[0]
