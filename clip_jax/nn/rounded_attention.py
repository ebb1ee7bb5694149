"""Attention for CPUs: float32, with the inputs of products rounded to bfloat16."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.nn.matmul import row_major
from clip_jax.nn.target import is_single_device

MASKED = -1e30  # Logit of a masked key. Finite, because differences of infinities are NaN.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def rounded_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | np.ndarray | None,
  dtype: str,
) -> jax.Array:
  """`attention.softmax_attention` in float32, with both inputs of every product rounded to `dtype`.

  No product transposes its left input, because XLA's CPU backend would compute it in float32. So
  the backward pass works with the transposed weights, one row per key.

  Args:
    q, k, v: float32 [B, N, heads, D/h].
    mask: bool [B or 1, 1, N, N], True where a query may attend.
    dtype: dtype of the inputs of products.

  Returns:
    float32 [B, N, heads, D/h].
  """
  return _forward(q, k, v, mask, dtype)[0]


def _forward(q, k, v, mask, dtype):
  queries, keys, values = (_heads_first(x, dtype) for x in (q, k, v))
  logits = _product("bntd,bnsd->bnts", queries, keys) / math.sqrt(q.shape[-1])
  if mask is not None:
    logits = jnp.where(mask, logits, MASKED)
  largest = logits.max(-1)
  weights = jnp.exp(logits - largest[..., None])  # [B, heads, query, key]
  total = weights.sum(-1)  # [B, heads, query]
  y = _product("bnts,bnsd->bntd", weights.astype(dtype), values) / total[..., None]
  y = y.swapaxes(1, 2)
  return y, (q, k, v, mask, y, largest + jnp.log(total))


def _backward(dtype, residuals, g):
  q, k, v, mask, y, log_total = residuals
  scale = 1 / math.sqrt(q.shape[-1])
  queries, keys, values, gradients = (_heads_first(x, dtype) for x in (q, k, v, g))
  logits = _product("bnsd,bntd->bnst", keys, queries) * scale
  if mask is not None:
    logits = jnp.where(jnp.swapaxes(mask, -2, -1), logits, MASKED)
  weights = jnp.exp(logits - log_total[:, :, None])  # [B, heads, key, query]
  dv = _product("bnst,bntd->bnsd", _rows(weights.astype(dtype)), gradients)
  dweights = _product("bnsd,bntd->bnst", values, gradients)
  mean = jnp.einsum("btnd,btnd->bnt", y, g)
  dlogits = _rows((weights * (dweights - mean[:, :, None]) * scale).astype(dtype))
  dk = _product("bnst,bntd->bnsd", dlogits, queries)
  dq = _product("bnds,bnst->bndt", _rows(keys.swapaxes(2, 3)), dlogits)
  return dq.transpose(0, 3, 1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2), None


rounded_attention.defvjp(_forward, _backward)


def _product(formula, x, y):
  return _rows(jnp.einsum(formula, x, y, preferred_element_type=jnp.float32))


def _heads_first(x, dtype):
  """[B, N, heads, D/h] -> [B, heads, N, D/h], in `dtype`."""
  return _rows(x.astype(dtype).swapaxes(1, 2))


def _rows(x):
  # XLA would gather arrays with a layout constraint on every device.
  return row_major(x) if is_single_device() else x
