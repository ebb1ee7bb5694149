"""Attention itself: softmax of scaled products, as the device computes it best.

On GPUs cuDNN's kernel does it, where it can; elsewhere XLA's operations, with our own gradient.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.errors import UserError
from clip_jax.remat import made_again
from clip_jax.target import platform

KINDS = {
    "auto": "cuDNN's kernel on a GPU, where it can be used, and XLA's operations elsewhere",
    "xla": "XLA's operations",
    "cudnn": "cuDNN's kernel",
}
MASKED = -1e30  # A logit that a softmax takes for nothing, without making a difference NaN.


def attended(q: jax.Array, k: jax.Array, v: jax.Array,
             mask: jax.Array | np.ndarray | None = None,
             bias: jax.Array | None = None, *, kind: str = "auto") -> jax.Array:
  """Values, weighted by how well their keys match each query.

  Args:
    q, k, v: [B, N, heads, D/h].
    mask: bool [B or 1, 1, N, N], True where a query may look; at one place at least.
    bias: float [B or 1, heads, N, N], added to the logits.
    kind: a name in `KINDS`.

  Returns:
    [B, N, heads, D/h], in the dtype of q.

  Raises:
    UserError: "cudnn" where it cannot be used.
  """
  reason = "" if kind == "xla" else why_not_cudnn(q, mask, bias)
  if kind == "cudnn" and reason:
    raise UserError(f'attention="cudnn" cannot be used: {reason}. Set attention="auto".')
  if kind != "xla" and not reason:
    return _cudnn(q, k, v)
  if bias is not None or platform() == "gpu":
    # A GPU's compiler would keep copies of q, k and v for the backward pass of the other form.
    return made_again(jax.nn.dot_product_attention)(q, k, v, bias, mask)
  return softmax_attention(q, k, v, mask)


def _cudnn(q, k, v):
  B, N = q.shape[:2]
  if N % 2 == 0:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  # JAX takes no odd numbers of tokens for training, as 7 x 7 patches are: one more, seen by none.
  q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
  lengths = jnp.full(B, N, jnp.int32)
  return jax.nn.dot_product_attention(q, k, v, query_seq_lengths=lengths,
                                      key_value_seq_lengths=lengths, implementation="cudnn")[:, :N]


def _logits(q, k, mask):
  logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
  logits *= 1 / math.sqrt(q.shape[-1])
  return logits if mask is None else jnp.where(mask, logits, MASKED)


@jax.custom_vjp
def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array,
                      mask: jax.Array | np.ndarray | None) -> jax.Array:
  """`attended` without a bias, in XLA's operations.

  Weights are float32, and rounded to the dtype of v where they are multiplied with it. The backward
  pass makes them again, from the logarithm of their sums: it neither looks for the largest logit
  again nor sums over weights, for the sum that it needs is that of results times their gradients.

  Source: Dao et al. 2022 (FlashAttention), sec. 3.1 and appendix B, of one block.
  """
  return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
  logits = _logits(q, k, mask)                                              # [B, heads, N, N]
  largest = logits.max(-1)
  weights = jnp.exp(logits - largest[..., None])
  total = weights.sum(-1)                                                   # [B, heads, N]
  y = jnp.einsum("bnts,bsnd->btnd", weights.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  y = (y / total.swapaxes(1, 2)[..., None]).astype(q.dtype)
  return y, (q, k, v, mask, y, largest + jnp.log(total))


def _backward(kept, g):
  q, k, v, mask, y, log_total = kept
  weights = jnp.exp(_logits(q, k, mask) - log_total[..., None])
  of_v = jnp.einsum("bnts,btnd->bsnd", weights.astype(g.dtype), g)
  of_weights = jnp.einsum("btnd,bsnd->bnts", g, v, preferred_element_type=jnp.float32)
  mean = jnp.einsum("btnd,btnd->bnt", y, g, preferred_element_type=jnp.float32)
  of_logits = weights * (of_weights - mean[..., None]) * (1 / math.sqrt(q.shape[-1]))
  of_logits = of_logits.astype(q.dtype)
  return (jnp.einsum("bnts,bsnd->btnd", of_logits, k),
          jnp.einsum("bnts,btnd->bsnd", of_logits, q), of_v, None)


softmax_attention.defvjp(_forward, _backward)


def why_not_cudnn(q: jax.Array, mask: jax.Array | np.ndarray | None,
                  bias: jax.Array | None) -> str:
  """Why cuDNN's kernel is not used for these; empty if it is."""
  width = q.shape[-1]
  if platform() != "gpu":
    return f"this runs on a {platform().upper()}, and it is for GPUs"
  if mask is not None or bias is not None:
    return "it is used for attention without mask and bias"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it computes in bfloat16 or float16, not in {q.dtype}"
  if width % 8 or width > 128:
    return f"its heads are multiples of 8 wide, and 128 at most, not {width}"
  return cudnn_problem(q.shape[1], width, str(q.dtype))


@functools.cache
def cudnn_problem(N: int, width: int, dtype: str) -> str:
  """What is wrong with cuDNN's attention of N tokens here, tried once; empty if nothing.

  Whether versions of cuDNN, of the driver and of JAX go together only shows when they run. What is
  compiled for devices that are not there is traced alone.
  """
  here = jax.default_backend() == "gpu"
  try:
    if here:
      # Threads do not share what is being traced, in the midst of which this may be asked.
      with ThreadPoolExecutor(1) as thread:
        error = thread.submit(difference, _cudnn, N, width, dtype).result()
      if not error < 0.05:
        raise ValueError(f"its gradients are wrong by {error:.2g} of the largest")
    else:
      x = jax.ShapeDtypeStruct((1, N, 1, width), dtype)
      jax.eval_shape(lambda *x: jax.vjp(_cudnn, *x)[1](x[0]), x, x, x)
  except Exception as e:  # Whatever it is, there is another way to compute the same.
    problem = (str(e) or type(e).__name__).splitlines()[0]
    if here:
      warnings.warn("cuDNN's attention does not work here, so XLA's operations are used: "
                    f"{problem}", stacklevel=2)
    return problem
  return ""


def difference(attend: Callable, N: int, width: int, dtype: str) -> float:
  """The largest difference of `attend` to the formula, in value and gradients, relative."""
  rng = np.random.default_rng(0)
  x = [rng.normal(size=(2, N, 2, width)) for _ in range(4)]

  def both(f, dtype):
    y, gradients = jax.vjp(f, *(jnp.asarray(a, dtype) for a in x[:3]))
    return y, *gradients(jnp.asarray(x[3], dtype))

  got = jax.jit(both, static_argnums=(0, 1))(attend, dtype)
  expected = jax.jit(both, static_argnums=(0, 1))(
      functools.partial(softmax_attention, mask=None), "float32")
  return max(float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
             for a, b in zip(got, expected))
