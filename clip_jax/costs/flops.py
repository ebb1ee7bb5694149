"""Counts the multiply-adds of a program and the parameters of a model by tracing.

One multiply-add is two FLOPs. Matrix products and convolutions are counted, as in papers and in the
peak FLOP/s of devices. XLA's own cost analysis is not used, because it counts the body of a loop
over blocks once, whatever the number of blocks.
"""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
import numpy as np

from clip_jax.errors import UserError

# Matrix products in cuDNN's attention kernels; the backward pass recomputes one of the forward's.
KERNEL_MATMULS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def count_multiply_adds(fn: Callable, *args: Any, float32_weight: float = 1) -> float:
  """Counts the multiply-adds of `fn(*args)` over all devices; nothing is executed.

  A loop is multiplied by its trip count, a conditional counts as its most expensive branch, and
  rematerialisation in a backward pass counts again.

  Args:
    fn: any traceable function; for a training step, its value and gradient.
    *args: arrays or their shapes.
    float32_weight: weight of float32 products at the highest precision, which some devices compute
      as several products of lower precision.

  Raises:
    UserError: there are products in a loop without a fixed trip count.
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr, float32_weight)


def count_parameters(tree: Any) -> int:
  """Total number of elements of all arrays, or shapes of arrays, in a tree."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _count(jaxpr, float32_weight):
  return sum(_count_equation(equation, float32_weight) for equation in jaxpr.eqns)


def _count_equation(equation, float32_weight):
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    weight = float32_weight if _is_highest_precision(equation) else 1
    left, right = (v.aval.shape for v in equation.invars)
    return weight * _matmul(left, right, params["dimension_numbers"])
  if name == "conv_general_dilated":
    return _convolution(equation.invars[1].aval.shape, equation.outvars[0].aval.shape, params)
  if name in KERNEL_MATMULS:
    q, k = (v.aval.shape for v in equation.invars[:2])  # [B, N, heads, D/h]
    return KERNEL_MATMULS[name] * math.prod(q) * k[1]
  inner = [_count(jaxpr, float32_weight) for jaxpr in _inner_programs(params)]
  if name == "cond":
    return max(inner)
  if name == "while" and any(inner):
    raise UserError(
      "Cannot count the matrix products in a while loop, because its trip count is "
      "not known before it runs. Use jax.lax.scan, or jax.lax.fori_loop with fixed "
      "bounds."
    )
  return sum(inner) * _trip_count(name, params)


def _is_highest_precision(product):
  precision = product.params["precision"]
  precisions = precision if isinstance(precision, tuple) else (precision,)
  return product.invars[0].aval.dtype == np.float32 and jax.lax.Precision.HIGHEST in precisions


def _trip_count(name, params):
  """Number of times that a primitive runs its inner program."""
  if name == "scan":
    return params["length"]
  if name == "shard_map":  # The shapes inside are those of one device.
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  return 1


def _inner_programs(value: Any) -> Iterator[Jaxpr]:
  """Yields the programs among a primitive's parameters; gradient rules are not, until used."""
  if isinstance(value, ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, Jaxpr):
    yield value
  elif isinstance(value, (tuple, list, dict)):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _inner_programs(item)


def _matmul(left, right, dimension_numbers):
  """The size of the left operand times the free (not contracted, not batch) axes of the right."""
  (_, summed), (_, shared) = dimension_numbers
  return math.prod(left) * math.prod(
    n for axis, n in enumerate(right) if axis not in (*summed, *shared)
  )


def _convolution(kernel, result, params):
  """Counts padding, as papers do, but not the zeros that a gradient inserts between elements."""
  numbers = params["dimension_numbers"]
  # A grouped kernel has the input features of one group.
  total = kernel[numbers.rhs_spec[1]] * result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
  for i, (out_axis, kernel_axis) in enumerate(zip(numbers.out_spec[2:], numbers.rhs_spec[2:])):
    at = (
      np.arange(result[out_axis])[:, None] * params["window_strides"][i]
      + np.arange(kernel[kernel_axis]) * params["rhs_dilation"][i]
      - params["padding"][i][0]
    )
    total *= int((at % params["lhs_dilation"][i] == 0).sum())
  return total
