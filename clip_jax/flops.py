"""Multiply-adds of a program and parameters of a model, by counting, not by measuring.

One multiply-add is two FLOPs. Counted are matrix products and convolutions, which is what papers
count and what a device's peak is stated for. The compiler's own count takes the body of a loop over
blocks once, however many blocks there are.
"""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
import numpy as np

from clip_jax.errors import UserError

# Products in cuDNN's attention; its backward pass makes one of the forward pass's again.
KERNELS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def multiply_adds(fn: Callable, *args: Any, exact: float = 1) -> float:
  """Multiply-adds in `fn(*args)`, over all devices; nothing is computed.

  A loop counts as often as it turns, a branch as its dearest side, and what is rematerialised in a
  backward pass counts again.

  Args:
    fn: any traceable function; for a training step, its value and gradient.
    *args: arrays or their shapes.
    exact: how many times a product of float32 at the highest precision counts, where a device
      makes it of several smaller ones.

  Raises:
    UserError: products in a loop that turns until some condition holds.
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr, exact)


def parameters(tree: Any) -> int:
  """Number of elements in all arrays, or shapes of arrays, of a tree."""
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
    q, k = (v.aval.shape for v in equation.invars[:2])                      # [B, N, heads, D/h]
    return KERNELS[name] * math.prod(q) * k[1]
  inner = [_count(jaxpr, exact) for jaxpr in _inner(of)]
  if name == "cond":
    return max(inner)
  if name == "while" and any(inner):
    raise UserError("A while loop holds products, and how often it turns is not known before it "
                    "runs. Use jax.lax.scan, or jax.lax.fori_loop with fixed bounds, to count it.")
  return sum(inner) * _turns(name, of)


def _is_exact(product):
  precision = product.params["precision"]
  asked = precision if isinstance(precision, tuple) else (precision,)
  return product.invars[0].aval.dtype == np.float32 and jax.lax.Precision.HIGHEST in asked


def _turns(name, of):
  """How often a primitive runs what is inside it."""
  if name == "scan":
    return of["length"]
  if name == "shard_map":  # Inside, shapes are those of one device.
    return math.prod(of["mesh"].shape[axis] for axis in of["newly_manual_axes"])
  if name == "pallas_call":
    return math.prod(of["grid_mapping"].grid)
  return 1


def _inner(value: Any) -> Iterator[Jaxpr]:
  """The programs among a primitive's parameters; a gradient rule is not one until it is used."""
  if isinstance(value, ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, Jaxpr):
    yield value
  elif isinstance(value, (tuple, list, dict)):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _inner(item)


def _product(left, right, dimension_numbers):
  """All axes of the left side, once for each element along the right side's own axes."""
  (_, summed), (_, shared) = dimension_numbers
  return math.prod(left) * math.prod(
      n for axis, n in enumerate(right) if axis not in (*summed, *shared))


def _convolution(kernel, result, of):
  """Padding counts, as in papers; the zeros that a gradient puts between elements do not."""
  numbers = of["dimension_numbers"]
  # The kernel's input features are those of one group.
  total = kernel[numbers.rhs_spec[1]] * result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
  for i, (out_axis, kernel_axis) in enumerate(zip(numbers.out_spec[2:], numbers.rhs_spec[2:])):
    at = (np.arange(result[out_axis])[:, None] * of["window_strides"][i]
          + np.arange(kernel[kernel_axis]) * of["rhs_dilation"][i] - of["padding"][i][0])
    total *= int((at % of["lhs_dilation"][i] == 0).sum())
  return total
