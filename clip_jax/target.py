"""What is being traced for: the kind of device, and what to compute in there."""

from collections.abc import Iterator
import contextlib
from contextvars import ContextVar

import jax

from clip_jax.errors import UserError

_anywhere = ContextVar("anywhere", default=False)
DTYPES = ("auto", "bfloat16", "float16", "float32")


def platform() -> str:
  """What that which is traced now is for: "cpu", "gpu" or "tpu".

  The kind of the mesh's devices, which need not be there; without a mesh, of those that are.
  """
  if _anywhere.get():
    return "cpu"
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return getattr(device, "platform", None) or jax.default_backend()


@contextlib.contextmanager
def anywhere() -> Iterator[None]:
  """Within it, what is traced is for all kinds of devices: as on a CPU, which is one like them."""
  token = _anywhere.set(True)
  try:
    yield
  finally:
    _anywhere.reset(token)


def computed_in(dtype: str) -> str:
  """What a tower computes in: of "auto", bfloat16 on a TPU or GPU, and float32 on a CPU.

  XLA makes 1.2 times as many images a second in float32 on a CPU (docs/speed.md).

  Raises:
    UserError: it is no name in `DTYPES`.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r} does not exist; there are {', '.join(DTYPES)}.")
  if dtype != "auto":
    return dtype
  return "float32" if platform() == "cpu" else "bfloat16"
