"""Scaled dot-product attention, with an implementation chosen by device.

GPUs use cuDNN's fused kernel where it applies; elsewhere XLA operations with a custom gradient.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import functools
import math
from typing import Annotated
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.cli.values import OneOf
from clip_jax.errors import UserError
from clip_jax.nn.remat import remat
from clip_jax.nn.rounded_attention import MASKED, rounded_attention
from clip_jax.nn.target import rounds_products_only, target_platform

KINDS = {
  "auto": "cuDNN's kernel on a GPU where it applies, XLA operations elsewhere",
  "xla": "XLA operations",
  "cudnn": "cuDNN's kernel",
}
AttentionKind = Annotated[str, OneOf(KINDS)]


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | np.ndarray | None = None,
  bias: jax.Array | None = None,
  *,
  kind: str = "auto",
  dtype: str = "float32",
) -> jax.Array:
  """Computes multi-head scaled dot-product attention.

  Args:
    q, k, v: [B, N, heads, D/h].
    mask: bool [B or 1, 1, N, N], True where a query may attend; every query needs at least one
      True.
    bias: float [B or 1, heads, N, N], added to the logits.
    kind: the implementation, a name in `KINDS`.
    dtype: dtype that the tower computes in, to which a CPU rounds the inputs of products.

  Returns:
    [B, N, heads, D/h], in the dtype of q.

  Raises:
    UserError: `kind` is "cudnn" and cuDNN's kernel cannot be used.
  """
  reason = "" if kind == "xla" else why_not_cudnn(q, mask, bias)
  if kind == "cudnn" and reason:
    raise UserError(f'attention="cudnn" cannot be used: {reason}. Set attention="auto".')
  if kind != "xla" and not reason:
    return _cudnn(q, k, v)
  if bias is not None or target_platform() == "gpu":
    # `softmax_attention` takes no bias, and a GPU's XLA would keep copies of q, k and v for its
    # backward pass.
    return remat(jax.nn.dot_product_attention)(q, k, v, bias, mask)
  if rounds_products_only(dtype):
    return rounded_attention(q, k, v, mask, dtype)
  return softmax_attention(q, k, v, mask)


def _cudnn(q, k, v):
  B, N = q.shape[:2]
  if N % 2 == 0:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  # cuDNN training needs an even sequence length and 7 x 7 patches is odd, so pad with one masked
  # token.
  q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
  lengths = jnp.full(B, N, jnp.int32)
  return jax.nn.dot_product_attention(
    q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
  )[:, :N]


def _logits(q, k, mask):
  logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
  logits *= 1 / math.sqrt(q.shape[-1])
  return logits if mask is None else jnp.where(mask, logits, MASKED)


@jax.custom_vjp
def softmax_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | np.ndarray | None
) -> jax.Array:
  """`attention` without a bias, in XLA operations.

  The weights are computed in float32 and cast to the dtype of v to multiply it. The backward pass
  recomputes them from the saved log-sum-exp of the logits, so it needs no second maximum; and it
  gets the sum over weights in the softmax gradient from the outputs and their gradients.

  Source: Dao et al. 2022 (FlashAttention), sec. 3.1 and appendix B, with a single block.
  """
  return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
  logits = _logits(q, k, mask)  # [B, heads, N, N]
  largest = logits.max(-1)
  weights = jnp.exp(logits - largest[..., None])
  total = weights.sum(-1)  # [B, heads, N]
  y = jnp.einsum("bnts,bsnd->btnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  y = (y / total.swapaxes(1, 2)[..., None]).astype(q.dtype)
  return y, (q, k, v, mask, y, largest + jnp.log(total))


def _backward(residuals, g):
  q, k, v, mask, y, log_total = residuals
  weights = jnp.exp(_logits(q, k, mask) - log_total[..., None])
  dv = jnp.einsum("bnts,btnd->bsnd", weights.astype(g.dtype), g)
  dweights = jnp.einsum("btnd,bsnd->bnts", g, v, preferred_element_type=jnp.float32)
  mean = jnp.einsum("btnd,btnd->bnt", y, g, preferred_element_type=jnp.float32)
  dlogits = weights * (dweights - mean[..., None]) * (1 / math.sqrt(q.shape[-1]))
  dlogits = dlogits.astype(q.dtype)
  return (
    jnp.einsum("bnts,bsnd->btnd", dlogits, k),
    jnp.einsum("bnts,btnd->bsnd", dlogits, q),
    dv,
    None,
  )


softmax_attention.defvjp(_forward, _backward)


def why_not_cudnn(q: jax.Array, mask: jax.Array | np.ndarray | None, bias: jax.Array | None) -> str:
  """Returns the reason why cuDNN's kernel is not used for these inputs; "" if it is used."""
  width = q.shape[-1]
  if target_platform() != "gpu":
    return f"this runs on a {target_platform().upper()}, and cuDNN needs a GPU"
  if mask is not None or bias is not None:
    return "it is only used without a mask and a bias"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it needs bfloat16 or float16, not {q.dtype}"
  if width % 8 or width > 128:
    return f"it needs a head width that is a multiple of 8 and at most 128, not {width}"
  return cudnn_problem(q.shape[1], width, str(q.dtype))


@functools.cache
def cudnn_problem(N: int, width: int, dtype: str) -> str:
  """Tries cuDNN's attention with N tokens once; returns the problem, or "" if it works.

  Whether the versions of cuDNN, the driver and JAX are compatible only shows when the kernel runs.
  Without a GPU here, when compiling for one, the kernel is only traced.
  """
  here = jax.default_backend() == "gpu"
  try:
    if here:
      # This may be called during tracing; a thread of its own has no trace in progress.
      with ThreadPoolExecutor(1) as thread:
        error = thread.submit(relative_error, _cudnn, N, width, dtype).result()
      if not error < 0.05:
        raise ValueError(f"its results are off by {error:.2g} of the largest value")
    else:
      x = jax.ShapeDtypeStruct((1, N, 1, width), dtype)
      jax.eval_shape(lambda *x: jax.vjp(_cudnn, *x)[1](x[0]), x, x, x)
  except Exception as e:  # Any failure is fine, because XLA can compute the same.
    problem = (str(e) or type(e).__name__).splitlines()[0]
    if here:
      warnings.warn(
        f"cuDNN's attention does not work here, so XLA operations are used instead: {problem}",
        stacklevel=2,
      )
    return problem
  return ""


def relative_error(attend: Callable, N: int, width: int, dtype: str) -> float:
  """Returns the largest relative error of `attend`, in its value and gradients."""
  rng = np.random.default_rng(0)
  x = [rng.normal(size=(2, N, 2, width)) for _ in range(4)]

  def both(f, dtype):
    y, gradients = jax.vjp(f, *(jnp.asarray(a, dtype) for a in x[:3]))
    return y, *gradients(jnp.asarray(x[3], dtype))

  got = jax.jit(both, static_argnums=(0, 1))(attend, dtype)
  expected = jax.jit(both, static_argnums=(0, 1))(
    functools.partial(softmax_attention, mask=None), "float32"
  )
  return max(
    float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
    for a, b in zip(got, expected)
  )


def check_heads(width: int, num_heads: int) -> None:
  """Raises `UserError` unless the width is divisible by the number of heads."""
  if width % num_heads:
    raise UserError(f"width {width} is not divisible by {num_heads} heads.")
