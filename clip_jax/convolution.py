"""Convolutions whose kernels have float32 gradients, whatever the images are in."""

from collections.abc import Sequence
import functools

import jax
from jax import lax

Padding = str | Sequence[tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolved(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME",
              groups: int = 1) -> jax.Array:
  """Convolves in the dtype of x; the kernel's gradient is in its own.

  As with `layers.product`, that gradient is a sum over the batch, over other devices too.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C / groups, D].
    padding: "SAME", "VALID", or (low, high) of each side.

  Returns:
    [B, H / stride, W / stride, D].
  """
  return _convolution(x, kernel, stride, padding, groups)


def _convolution(x, kernel, stride, padding, groups):
  return lax.conv_general_dilated(
      x, kernel.astype(x.dtype), (stride, stride), padding, feature_group_count=groups,
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x, kernel, stride, padding, groups):
  return _convolution(x, kernel, stride, padding, groups), (x, kernel)


def _gradients(stride, padding, groups, kept, g):
  x, kernel = kept
  of_x, = jax.linear_transpose(
      lambda x: _convolution(x, kernel, stride, padding, groups), x)(g)
  sides, sizes = x.shape[1:3], kernel.shape[:2]
  pads = lax.padtype_to_pads(sides, sizes, (stride, stride), padding) \
      if isinstance(padding, str) else padding
  # Batch and channels change places: the examples are what is summed over.
  of_kernel = lax.conv_general_dilated(
      x, g, (1, 1), [(low, size + (n - 1) * stride - side - low)
                     for side, size, n, (low, _) in zip(sides, sizes, g.shape[1:3], pads)],
      rhs_dilation=(stride, stride), batch_group_count=groups,
      dimension_numbers=("CHWN", "IHWO", "HWNC"), preferred_element_type=kernel.dtype)
  return of_x, of_kernel


convolved.defvjp(_forward, _gradients)
