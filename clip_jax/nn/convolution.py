"""A convolution with float32 kernel gradients, whatever the dtype of the images."""

from collections.abc import Sequence
import functools

import jax
from jax import lax

Padding = str | Sequence[tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d(
  x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME", groups: int = 1
) -> jax.Array:
  """Convolves in the dtype of x; the kernel's gradient has the kernel's dtype.

  As in `layers.matmul_f32_grad`, that gradient is a sum over the batch, including rows on other
  devices.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C / groups, D].
    padding: "SAME", "VALID", or (low, high) for each spatial axis.

  Returns:
    [B, H / stride, W / stride, D].
  """
  return _convolution(x, kernel, stride, padding, groups)


def _convolution(x, kernel, stride, padding, groups):
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    (stride, stride),
    padding,
    feature_group_count=groups,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _forward(x, kernel, stride, padding, groups):
  return _convolution(x, kernel, stride, padding, groups), (x, kernel)


def _gradients(stride, padding, groups, residuals, g):
  x, kernel = residuals
  (dx,) = jax.linear_transpose(lambda x: _convolution(x, kernel, stride, padding, groups), x)(g)
  sides, sizes = x.shape[1:3], kernel.shape[:2]
  pads = (
    lax.padtype_to_pads(sides, sizes, (stride, stride), padding)
    if isinstance(padding, str)
    else padding
  )
  # Batch and channel axes are swapped, so that this convolution sums over the examples.
  dkernel = lax.conv_general_dilated(
    x,
    g,
    (1, 1),
    [
      (low, size + (n - 1) * stride - side - low)
      for side, size, n, (low, _) in zip(sides, sizes, g.shape[1:3], pads)
    ],
    rhs_dilation=(stride, stride),
    batch_group_count=groups,
    dimension_numbers=("CHWN", "IHWO", "HWNC"),
    preferred_element_type=kernel.dtype,
  )
  return dx, dkernel


conv2d.defvjp(_forward, _gradients)
