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
KERNELS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def count_multiply_adds(fn: Callable, *args: Any, exact: float = 1) -> float:
  """Counts the multiply-adds of `fn(*args)` over all devices; nothing is executed.

  A loop is multiplied by its trip count, a conditional counts as its most expensive branch, and
  rematerialisation in a backward pass counts again.

  Args:
    fn: any traceable function; for a training step, its value and gradient.
    *args: arrays or their shapes.
    exact: weight of float32 products at the highest precision, which some devices compute as
      several products of lower precision.

  Raises:
    UserError: there are products in a loop without a fixed trip count.
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr, exact)


def count_parameters(tree: Any) -> int:
  """Total number of elements of all arrays, or shapes of arrays, in a tree."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _count(jaxpr, exact):
  return sum(_count_one(equation, exact) for equation in jaxpr.eqns)


def _count_one(equation, exact):
  name, of = equation.primitive.name, equation.params
  if name == "dot_general":
    times = exact if _is_exact(equation) else 1
    left, right = (v.aval.shape for v in equation.invars)
    return times * _product(left, right, of["dimension_numbers"])
  if name == "conv_general_dilated":
    return _convolution(equation.invars[1].aval.shape, equation.outvars[0].aval.shape, of)
  if name in KERNELS:
    q, k = (v.aval.shape for v in equation.invars[:2])  # [B, N, heads, D/h]
    return KERNELS[name] * math.prod(q) * k[1]
  inner = [_count(jaxpr, exact) for jaxpr in _inner(of)]
  if name == "cond":
    return max(inner)
  if name == "while" and any(inner):
    raise UserError(
      "Cannot count the matrix products in a while loop, because its trip count is "
      "not known before it runs. Use jax.lax.scan, or jax.lax.fori_loop with fixed "
      "bounds."
    )
  return sum(inner) * _turns(name, of)


def _is_exact(product):
  precision = product.params["precision"]
  asked = precision if isinstance(precision, tuple) else (precision,)
  return product.invars[0].aval.dtype == np.float32 and jax.lax.Precision.HIGHEST in asked


def _turns(name, of):
  """Number of times that a primitive runs its inner program."""
  if name == "scan":
    return of["length"]
  if name == "shard_map":  # The shapes inside are those of one device.
    return math.prod(of["mesh"].shape[axis] for axis in of["newly_manual_axes"])
  if name == "pallas_call":
    return math.prod(of["grid_mapping"].grid)
  return 1


def _inner(value: Any) -> Iterator[Jaxpr]:
  """Yields the programs among a primitive's parameters; gradient rules are not, until used."""
  if isinstance(value, ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, Jaxpr):
    yield value
  elif isinstance(value, (tuple, list, dict)):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _inner(item)


def _product(left, right, dimension_numbers):
  """The size of the left operand times the free (not contracted, not batch) axes of the right."""
  (_, summed), (_, shared) = dimension_numbers
  return math.prod(left) * math.prod(
    n for axis, n in enumerate(right) if axis not in (*summed, *shared)
  )


def _convolution(kernel, result, of):
  """Counts padding, as papers do, but not the zeros that a gradient inserts between elements."""
  numbers = of["dimension_numbers"]
  # A grouped kernel has the input features of one group.
  total = kernel[numbers.rhs_spec[1]] * result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
  for i, (out_axis, kernel_axis) in enumerate(zip(numbers.out_spec[2:], numbers.rhs_spec[2:])):
    at = (
      np.arange(result[out_axis])[:, None] * of["window_strides"][i]
      + np.arange(kernel[kernel_axis]) * of["rhs_dilation"][i]
      - of["padding"][i][0]
    )
    total *= int((at % of["lhs_dilation"][i] == 0).sum())
  return total
