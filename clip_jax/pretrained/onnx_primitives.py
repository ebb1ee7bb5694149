"""Translates JAX's primitives into ONNX operators."""

from collections.abc import Callable
import functools
import math
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.pretrained.onnx_graph import Graph, Tensor, broadcast_shapes, stored_shape

_MANY = 2**63 - 1  # End of a slice that goes to the end.
_SAME_NAME = (
  *("abs", "exp", "log", "neg", "sqrt", "sign", "floor", "tanh", "erf", "round", "ceil", "not"),
  *("sin", "cos", "add", "sub", "mul", "div", "max", "min", "pow", "and", "or", "xor"),
)
_ELEMENTWISE = dict(
  {name: name.capitalize() for name in _SAME_NAME},
  **dict(eq="Equal", lt="Less", le="LessOrEqual", gt="Greater", ge="GreaterOrEqual"),
  **dict(logistic="Sigmoid", copy="Identity", stop_gradient="Identity"),
  reduce_precision="Identity",
  name="Identity",
)
_REDUCTIONS = dict(reduce_sum="ReduceSum", reduce_max="ReduceMax", reduce_min="ReduceMin")
_REDUCTIONS["reduce_prod"] = "ReduceProd"
_INNER = {"jit": "jaxpr", "pjit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
_INNER |= {
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
  "closed_call": "call_jaxpr",
}


def translate(graph: Graph, jaxpr: Any, constants: list[Any], arguments: list[Any]) -> list[Any]:
  """Adds the operators of a jaxpr to a graph.

  Args:
    graph: the graph, changed in place.
    jaxpr: an open jaxpr, with sizes that are numbers or multiples of the batch size.
    constants, arguments: values of its variables: arrays or `Tensor`s.

  Returns:
    Its results: arrays, where they do not depend on the input, or `Tensor`s.

  Raises:
    UserError: a primitive has no translation.
  """
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants)) | dict(
    zip(jaxpr.invars, arguments)
  )
  read = lambda v: np.asarray(v.val) if hasattr(v, "val") else values[v]
  for equation in jaxpr.eqns:
    inputs = [read(v) for v in equation.invars]
    results = _equation(graph, equation, inputs)
    values.update(zip(equation.outvars, results))
  return [read(v) for v in jaxpr.outvars]


def _equation(graph, equation, inputs):
  name, params = equation.primitive.name, equation.params
  outputs = [(v.aval.shape, np.dtype(v.aval.dtype)) for v in equation.outvars]
  if name == "scan":
    return _scan(graph, params, inputs)
  if name in _INNER:
    inner = params[_INNER[name]]
    return translate(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", []), inputs)
  static = all(isinstance(size, int) for shape, _ in outputs for size in shape)
  if static and not any(isinstance(x, Tensor) for x in inputs):
    found = equation.primitive.bind(*inputs, **params)
    return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
  shape, dtype = outputs[0]
  if name in _ELEMENTWISE:
    return [_elementwise(graph, _ELEMENTWISE[name], inputs, shape, dtype)]
  if name in _REDUCTIONS:
    axes = graph.constant(np.array(params["axes"], np.int64))
    made = graph.add(_REDUCTIONS[name], [graph.whole(inputs[0]), axes], keepdims=0)
    return [Tensor(made, shape, dtype, shape)]
  if name not in _RULES:
    raise UserError(
      f"The model uses {name!r}, which cannot be written as ONNX yet. Export it with "
      "--format=stablehlo instead."
    )
  made = _RULES[name](graph, params, inputs, shape, dtype)
  return [made if isinstance(made, Tensor) else Tensor(made, shape, dtype, shape)]


def _scan(graph, params, inputs):
  """Unrolls a loop; the stacked results of its steps must not be used."""
  count, carried = params["num_consts"], params["num_carry"]
  constants, carry, stacked = (
    inputs[:count],
    inputs[count : count + carried],
    inputs[count + carried :],
  )
  steps, results = range(params["length"]), []
  for i in reversed(steps) if params["reverse"] else steps:
    own = [_step_of(graph, x, i) for x in stacked]
    found = translate(
      graph, params["jaxpr"].jaxpr, params["jaxpr"].consts, [*constants, *carry, *own]
    )
    carry = found[:carried]
    results.append(found[carried:])
  if params["reverse"]:
    results.reverse()
  return [*carry, *(_stacked(graph, list(xs)) for xs in zip(*results))]


def _step_of(graph, x, i):
  if not isinstance(x, Tensor):
    return x[i]
  made = graph.add("Gather", [graph.whole(x), graph.constant(np.int64(i))], axis=0)
  return Tensor(made, x.shape[1:], x.dtype, x.shape[1:])


def _stacked(graph, xs):
  if not any(isinstance(x, Tensor) for x in xs):
    return np.stack(xs)
  zero = graph.constant(np.array([0], np.int64))
  made = graph.add("Concat", [graph.add("Unsqueeze", [graph.whole(x), zero]) for x in xs], axis=0)
  shape = (len(xs), *np.shape(xs[0])) if not isinstance(xs[0], Tensor) else (len(xs), *xs[0].shape)
  return Tensor(made, shape, xs[0].dtype, shape)


def _elementwise(graph, operator, inputs, shape, dtype):
  made = graph.add(operator, [graph.operand(x) for x in inputs])
  stored = broadcast_shapes([stored_shape(x) for x in inputs])
  return Tensor(made, shape, dtype, stored)


def _composed(*operators: tuple) -> Callable:
  """A rule that applies operators in turn; each is (name, constants after the input)."""

  def rule(graph, params, inputs, shape, dtype):
    made = inputs[0]
    for operator, *constants in operators:
      made = _elementwise(
        graph, operator, [made, *(dtype.type(c) for c in constants)], shape, dtype
      )
    return made

  return rule


def _not_equal(graph, params, inputs, shape, dtype):
  equal = _elementwise(graph, "Equal", inputs, shape, dtype)
  return _elementwise(graph, "Not", [equal], shape, dtype)


def _square(graph, params, inputs, shape, dtype):
  return _elementwise(graph, "Mul", [inputs[0], inputs[0]], shape, dtype)


def _integer_pow(graph, params, inputs, shape, dtype):
  return _elementwise(graph, "Pow", [inputs[0], dtype.type(params["y"])], shape, dtype)


def _rem(graph, params, inputs, shape, dtype):
  made = graph.add("Mod", [graph.operand(x) for x in inputs], fmod=1)
  return Tensor(made, shape, dtype, broadcast_shapes([stored_shape(x) for x in inputs]))


def _atan2(graph, params, inputs, shape, dtype):
  """atan2(y, x) from atan(y / x), with the quadrant by the signs."""
  y, x = inputs
  apply = functools.partial(_elementwise, graph, shape=shape, dtype=dtype)
  zero, pi = dtype.type(0), dtype.type(math.pi)
  upright = apply("Equal", [x, zero])
  angle = apply("Atan", [apply("Div", [y, apply("Where", [upright, dtype.type(1), x])])])
  below = apply("Less", [y, zero])
  turned = apply("Add", [angle, apply("Where", [below, -pi, pi])])
  angle = apply("Where", [apply("Less", [x, zero]), turned, angle])
  half = apply("Where", [below, -pi / 2, pi / 2])
  flat = apply("And", [upright, apply("Equal", [y, zero])])
  return apply("Where", [flat, zero, apply("Where", [upright, half, angle])])


def _select(graph, params, inputs, shape, dtype):
  which, *cases = inputs
  if len(cases) != 2:
    raise UserError("A choice among more than two values cannot be written as ONNX.")
  return _elementwise(graph, "Where", [which, cases[1], cases[0]], shape, dtype)


def _clamp(graph, params, inputs, shape, dtype):
  low, x, high = inputs
  raised = _elementwise(graph, "Max", [low, x], shape, dtype)
  return _elementwise(graph, "Min", [raised, high], shape, dtype)


def _cast(graph, params, inputs, shape, dtype):
  kind = graph.onnx.helper.np_dtype_to_tensor_dtype(dtype)
  made = graph.add("Cast", [graph.operand(inputs[0])], to=kind)
  return Tensor(made, shape, dtype, stored_shape(inputs[0]))


def _broadcast(graph, params, inputs, shape, dtype):
  """Inserts dimensions of size 1, and leaves the rest to the operators that follow."""
  x, places = inputs[0], params["broadcast_dimensions"]
  before = stored_shape(x)
  stored = [1] * len(shape)
  for place, size in zip(places, before):
    stored[place] = size
  name = graph.operand(x)
  if tuple(stored) != tuple(before):
    name = graph.reshape(name, tuple(stored))
  return Tensor(name, shape, dtype, tuple(stored))


def _reshape(graph, params, inputs, shape, dtype):
  return graph.reshape(graph.whole(inputs[0]), shape)


def _transpose(graph, params, inputs, shape, dtype):
  x, order = inputs[0], params["permutation"]
  made = graph.add("Transpose", [graph.operand(x)], perm=list(order))
  return Tensor(made, shape, dtype, tuple(stored_shape(x)[k] for k in order))


def _concatenate(graph, params, inputs, shape, dtype):
  axis = params["dimension"]
  # Padding by nothing leaves empty parts, and ONNX cannot broadcast to size 0.
  parts = [graph.whole(x) for x in inputs if x.shape[axis] != 0]
  return graph.add("Concat", parts, axis=axis)


def _slice(graph, params, inputs, shape, dtype):
  x = inputs[0]
  ends, size = params["limit_indices"], x.shape
  # B - 1 counts from the end; a symbolic limit is the end.
  starts = [
    start if isinstance(start, int) else int(start - size[k])
    for k, start in enumerate(params["start_indices"])
  ]
  limits = [end if isinstance(end, int) else _MANY for end in ends]
  steps = params["strides"] or (1,) * len(starts)
  axes = range(len(starts))
  vectors = [graph.constant(np.array(list(v), np.int64)) for v in (starts, limits, axes, steps)]
  return graph.add("Slice", [graph.whole(x), *vectors])


def _pad(graph, params, inputs, shape, dtype):
  config = params["padding_config"]
  if any(inner for _, _, inner in config):
    raise UserError("Padding between elements cannot be written as ONNX.")
  pads = np.array([low for low, _, _ in config] + [high for _, high, _ in config], np.int64)
  return graph.add("Pad", [graph.whole(inputs[0]), graph.constant(pads), graph.whole(inputs[1])])


def _argmax(graph, params, inputs, shape, dtype):
  made = graph.add("ArgMax", [graph.whole(inputs[0])], axis=params["axes"][0], keepdims=0)
  return graph.add("Cast", [made], to=graph.onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _reduce_bool(operator: str) -> Callable:
  def rule(graph, params, inputs, shape, dtype):
    number = graph.add("Cast", [graph.whole(inputs[0])], to=graph.onnx.TensorProto.INT32)
    axes = graph.constant(np.array(params["axes"], np.int64))
    made = graph.add(operator, [number, axes], keepdims=0)
    return graph.add("Cast", [made], to=graph.onnx.TensorProto.BOOL)

  return rule


def _dot(graph, params, inputs, shape, dtype):
  (left, right), (left_batch, right_batch) = params["dimension_numbers"]
  x, y = inputs
  x_rank, y_rank = (len(getattr(v, "shape", ())) for v in inputs)
  if (tuple(left), tuple(right)) == ((x_rank - 1,), (0,)) and y_rank == 2 and not left_batch:
    return graph.add("MatMul", [graph.whole(x), graph.whole(y)])
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  of_x = [next(letters) for _ in range(x_rank)]
  of_y = [""] * y_rank
  for i, j in [*zip(left, right), *zip(left_batch, right_batch)]:
    of_y[j] = of_x[i]
  of_y = [letter or next(letters) for letter in of_y]
  free = [of_x[i] for i in range(x_rank) if i not in (*left, *left_batch)]
  free += [of_y[j] for j in range(y_rank) if j not in (*right, *right_batch)]
  out = [of_x[i] for i in left_batch] + free
  equation = f"{''.join(of_x)},{''.join(of_y)}->{''.join(out)}"
  return graph.add("Einsum", [graph.whole(x), graph.whole(y)], equation=equation)


def _conv(graph, params, inputs, shape, dtype):
  numbers = params["dimension_numbers"]
  if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
    raise UserError("A transposed convolution cannot be written as ONNX yet.")
  image = graph.add("Transpose", [graph.whole(inputs[0])], perm=list(numbers.lhs_spec))
  kernel = inputs[1]
  kernel = (
    graph.add("Transpose", [graph.whole(kernel)], perm=list(numbers.rhs_spec))
    if isinstance(kernel, Tensor)
    else graph.constant(np.transpose(kernel, numbers.rhs_spec))
  )
  made = graph.add(
    "Conv",
    [image, kernel],
    strides=list(params["window_strides"]),
    dilations=list(params["rhs_dilation"]),
    group=params["feature_group_count"],
    pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
  )
  return graph.add("Transpose", [made], perm=list(np.argsort(numbers.out_spec)))


def _pool(operator: str) -> Callable:
  """Pooling over the middle dimensions of [B, H, W, C]."""

  def rule(graph, params, inputs, shape, dtype):
    window, strides, padding = (
      params[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    if (window[0], window[-1]) != (1, 1) or any(d != 1 for d in params["window_dilation"]):
      raise UserError("Pooling over the batch or the channels cannot be written as ONNX.")
    rank = len(window)
    first = graph.add(
      "Transpose", [graph.whole(inputs[0])], perm=[0, rank - 1, *range(1, rank - 1)]
    )
    options = {"count_include_pad": 1} if operator == "AveragePool" else {}
    made = graph.add(
      operator,
      [first],
      kernel_shape=list(window[1:-1]),
      strides=list(strides[1:-1]),
      pads=[low for low, _ in padding[1:-1]] + [high for _, high in padding[1:-1]],
      **options,
    )
    made = graph.add("Transpose", [made], perm=[0, *range(2, rank), 1])
    if operator == "MaxPool":
      return made
    return graph.add("Mul", [made, graph.constant(dtype.type(math.prod(window)))])

  return rule


def _gather(graph, params, inputs, shape, dtype):
  """Indexing of leading or single dimensions, as embeddings and pooled tokens need it."""
  x, indices = inputs
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  x_shape = stored_shape(x) if not isinstance(x, Tensor) else x.shape
  if not isinstance(indices, Tensor) and np.ndim(indices) == 1:
    return _fixed_slice(graph, x, dict(zip(numbers.start_index_map, indices)), sizes, shape)
  batching, indexed = numbers.operand_batching_dims, numbers.start_index_map
  collapsed = numbers.collapsed_slice_dims
  rest = [k for k in range(len(x_shape)) if k not in (*collapsed, *batching)]
  whole = all(sizes[k] is x_shape[k] or sizes[k] == x_shape[k] for k in rest)
  batched = tuple(range(len(batching)))
  leading = tuple(range(len(batching), len(batching) + len(indexed)))
  index_shape = indices.shape if isinstance(indices, Tensor) else np.shape(indices)
  supported = (
    tuple(indexed) == tuple(collapsed)
    and whole
    and tuple(batching) == batched
    and tuple(numbers.start_indices_batching_dims) == batched
  )
  if not supported:
    raise UserError(
      "The model indexes an array in a way that cannot be written as ONNX yet. Export it with "
      "--format=stablehlo instead."
    )
  wide = graph.add("Cast", [graph.whole(indices)], to=graph.onnx.TensorProto.INT64)
  index_rank = len(index_shape) - 1
  if not batching and len(indexed) == 1:
    axis = indexed[0]
    flat = graph.add("Squeeze", [wide, graph.constant(np.array([index_rank], np.int64))])
    made = graph.add("Gather", [graph.whole(x), flat], axis=axis)
    # Dimensions of the operand before the axis, of the indices, and of the operand after it.
    places = [("x", k) for k in rest if k < axis]
    places += [("i", k) for k in range(index_rank)] + [("x", k) for k in rest if k > axis]
  else:
    if tuple(indexed) != leading:
      raise UserError("Indexing of several dimensions that are not the first cannot be ONNX yet.")
    made = graph.add("GatherND", [graph.whole(x), wide], batch_dims=len(batching))
    places = [("i", k) for k in range(index_rank)] + [("x", k) for k in rest]
  offsets = iter(numbers.offset_dims)
  of_operand = {k: next(offsets) for k in rest}
  of_index = iter(k for k in range(len(shape)) if k not in numbers.offset_dims)
  of_indices = {k: next(of_index) for k in range(index_rank)}
  target = [of_operand[k] if kind == "x" else of_indices[k] for kind, k in places]
  if target == list(range(len(shape))):
    return made
  return graph.add("Transpose", [made], perm=list(np.argsort(target)))


def _fixed_slice(graph, x, starts, sizes, shape):
  """A slice whose start by dimension is known, with some dimensions of size 1 removed."""
  axes = sorted(starts)
  first = [int(starts[axis]) for axis in axes]
  ends = [start + sizes[axis] for start, axis in zip(first, axes)]
  vectors = [graph.constant(np.array(v, np.int64)) for v in (first, ends, axes)]
  return graph.reshape(graph.add("Slice", [graph.whole(x), *vectors]), shape)


_RULES: dict[str, Callable] = {
  "ne": _not_equal,
  "square": _square,
  "integer_pow": _integer_pow,
  "rsqrt": _composed(("Sqrt",), ("Reciprocal",)),
  "erfc": _composed(("Erf",), ("Neg",), ("Add", 1)),
  "rem": _rem,
  "atan2": _atan2,
  "select_n": _select,
  "clamp": _clamp,
  "convert_element_type": _cast,
  "broadcast_in_dim": _broadcast,
  "reshape": _reshape,
  "squeeze": _reshape,
  "expand_dims": _reshape,
  "transpose": _transpose,
  "concatenate": _concatenate,
  "slice": _slice,
  "pad": _pad,
  "argmax": _argmax,
  "reduce_or": _reduce_bool("ReduceMax"),
  "reduce_and": _reduce_bool("ReduceMin"),
  "dot_general": _dot,
  "conv_general_dilated": _conv,
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "gather": _gather,
}
