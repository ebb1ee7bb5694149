"""An ONNX graph while it is built: named tensors, constants, and broadcasts that are put off.

JAX broadcasts explicitly before every elementwise operation, and ONNX operators broadcast by
themselves. So a broadcast only inserts dimensions of size 1 here, and is carried out
when an operator needs the whole tensor.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

Shape = tuple[Any, ...]  # Sizes; the batch's are symbolic, B or a multiple of it.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A value that is not known when the graph is built.

  Attributes:
    name: its name in the graph.
    shape: its shape in JAX.
    dtype: its dtype in JAX.
    stored: its shape in the graph, with a size of 1 where it is still to be broadcast.
  """

  name: str
  shape: Shape
  dtype: np.dtype
  stored: Shape


class Graph:
  """Collects the nodes and the weights of a graph with one input, of which the first size is B."""

  def __init__(self, onnx: Any, batch_input: str):
    """Starts an empty graph.

    Args:
      onnx: the library.
      batch_input: name of the input whose first size is B.
    """
    self.onnx, self._input = onnx, batch_input
    self.nodes: list[Any] = []
    self.weights: list[Any] = []
    self._constants: dict[tuple, str] = {}
    self._batch: str | None = None

  def add(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
    """Adds a node and returns the name of its output."""
    name = f"t{len(self.nodes)}"
    self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], **attributes))
    return name

  def constant(self, value: Any) -> str:
    """Adds a constant, unless there is an equal one, and returns its name."""
    value = np.asarray(value)
    key = (value.shape, value.dtype.str, value.tobytes())
    if key not in self._constants:
      name = f"w{len(self.weights)}"
      self.weights.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
      self._constants[key] = name
    return self._constants[key]

  def sizes(self, shape: Shape) -> str:
    """Name of a shape as an int64 vector, which may depend on the batch."""
    if all(isinstance(size, int) for size in shape):
      return self.constant(np.array(shape, np.int64))
    if self._batch is None:
      whole = self.add("Shape", [self._input])
      self._batch = self.add("Slice", [whole, *(self.constant(np.array([k])) for k in (0, 1))])
    parts = []
    for size in shape:
      if isinstance(size, int):
        parts.append(self.constant(np.array([size], np.int64)))
      else:
        factor = batch_factor(size)
        parts.append(
          self._batch
          if factor == 1
          else self.add("Mul", [self._batch, self.constant(np.array([factor], np.int64))])
        )
    return self.add("Concat", parts, axis=0)

  def operand(self, value: Any) -> str:
    """Name of a value for an operator that broadcasts by itself."""
    return value.name if isinstance(value, Tensor) else self.constant(value)

  def whole(self, value: Any) -> str:
    """Name of a value in its full shape."""
    if not isinstance(value, Tensor) or value.stored == value.shape:
      return self.operand(value)
    return self.add("Expand", [value.name, self.sizes(value.shape)])

  def reshape(self, name: str, shape: Shape) -> str:
    """Reshapes to a shape with at most one symbolic size."""
    target = [size if isinstance(size, int) else -1 for size in shape]
    return self.add("Reshape", [name, self.constant(np.array(target, np.int64))])


def batch_factor(size: Any) -> int:
  """k of a symbolic size k B."""
  two, one = (int(size._evaluate({"B": b})) for b in (2, 1))
  assert two == 2 * one, f"{size} is not a multiple of the batch size"
  return one


def stored_shape(value: Any) -> Shape:
  """The shape of a value as it is in the graph."""
  return value.stored if isinstance(value, Tensor) else np.shape(value)


def broadcast_shapes(shapes: Sequence[Shape]) -> Shape:
  """The common shape of several, aligned at their last dimension; sizes may be symbolic."""
  rank = max(map(len, shapes))
  aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
  return tuple(
    next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)
    for sizes in zip(*aligned)
  )
