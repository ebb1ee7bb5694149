"""Products of activations with kernels, with float32 gradients of the kernels.

The gradient of a kernel is a sum over all rows of the batch, including those on other devices. It
is computed in float32: in bfloat16, which has 8 significant bits, a sum over 256 devices is off by
1.5%.

XLA's CPU backend multiplies bfloat16 matrices quickly only if the result is float32 and the left
matrix is not transposed; otherwise it converts both to float32 first (docs/speed.md). Between
products it computes in float32 whatever the dtype, and rounds after each operation. So on a CPU,
towers in bfloat16 round the inputs of products only, and `activation_dtype` is float32.
"""

import functools
import math

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from clip_jax.nn.target import is_single_device, rounds_products_only, target_platform


def activation_dtype(dtype: str) -> str:
  """Returns the dtype of activations between the products of a tower that computes in `dtype`."""
  return "float32" if rounds_products_only(dtype) else dtype


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul_f32_grad(x: jax.Array, kernel: jax.Array, n: int, dtype: str) -> jax.Array:
  """Computes `x @ kernel` over the last n axes of x, with both rounded to `dtype`.

  The kernel's gradient has the kernel's dtype.

  Returns:
    The product in `activation_dtype(dtype)`.
  """
  contracted = (range(x.ndim - n, x.ndim), range(n))
  return _dot(x.astype(dtype), kernel.astype(dtype), contracted, activation_dtype(dtype))


def _forward(x, kernel, n, dtype):
  # Save the float32 parameter, not its bfloat16 cast: the scan would stack one cast per block.
  saved = x.astype(activation_dtype(dtype))
  return matmul_f32_grad(saved, kernel, n, dtype), (saved, kernel)


def _gradients(n, dtype, residuals, g):
  x, kernel = residuals
  rows = range(x.ndim - n)
  x, g = x.astype(dtype), g.astype(dtype)
  contracted = (range(len(rows), g.ndim), range(n, kernel.ndim))
  dx = _dot(g, kernel.astype(dtype), contracted, activation_dtype(dtype))
  return dx, _kernel_gradient(x, g, rows, kernel)


matmul_f32_grad.defvjp(_forward, _gradients)


def _dot(x, y, contracted, dtype):
  return lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=dtype)


def _kernel_gradient(x, g, rows, kernel):
  """Sums x^T g over the rows, in the dtype of the kernel."""
  if target_platform() == "cpu" and is_single_device():
    # Without this, XLA may compute x, a GELU for example, once more for this product, and column by
    # column. Layout constraints would make XLA gather arrays that are sharded.
    x = lax.optimization_barrier(row_major(x))
    if rounds_products_only(str(x.dtype)):
      count = math.prod(x.shape[: len(rows)])
      transposed = row_major(x.reshape(count, -1).T)
      gradient = _dot(transposed, g.reshape(count, -1), ((1,), (0,)), kernel.dtype)
      return row_major(gradient).reshape(kernel.shape)
  return _dot(x, g, (rows, rows), kernel.dtype)


def row_major(x: jax.Array) -> jax.Array:
  """Stores an array row by row, as the operands of fast products on a CPU have to be."""
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
