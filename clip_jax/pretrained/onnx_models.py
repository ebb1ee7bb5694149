"""Exports a model as two ONNX models, for ONNX Runtime and what builds on it."""

import copy
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax import export
import numpy as np

from clip_jax.config import calls
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.model.learner import split_state
from clip_jax.nn.target import any_platform
from clip_jax.pretrained import model_bundle, saved_tokenizers
from clip_jax.pretrained.model_bundle import ModelBundle, abstract_model
from clip_jax.pretrained.onnx_graph import Graph, Tensor
from clip_jax.pretrained.onnx_primitives import translate

OPSET, IR_VERSION = 20, 10  # ONNX 1.16 and ONNX Runtime 1.18, both of 2024, or newer.
ENTRIES = {"encode_image": "image", "encode_text": "tokens"}
SHAPES = "shapes.json"
_LARGEST = 2**31 - 2**20  # Bytes of one file, by the limit of protocol buffers.


def write(saved: ModelBundle, folder: Path) -> None:
  """Writes encode_image.onnx, encode_text.onnx, shapes.json and the tokenizer; see `encoder`.

  Raises:
    UserError: the onnx library is not installed, or the model uses something that has no
      translation.
  """
  made = {method: encoder(saved, method) for method in ENTRIES}
  folder.mkdir(parents=True, exist_ok=True)
  shapes = {}
  for method, proto in made.items():
    with atomic_write(folder / f"{method}.onnx", "wb") as file:
      file.write(proto.SerializeToString())
    sizes = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    shapes[method] = {"input": ENTRIES[method], "shape": sizes, "output": "embedding"}
  extra = {"scale": saved.scale, "bias": saved.bias, "pixels": "RGB, 0 to 255"}
  resize = {"preprocess": model_bundle.preprocessing(saved)}
  model_bundle.save_json(folder / SHAPES, {**shapes, **extra, **resize})
  saved_tokenizers.write(saved.tokenizer, folder)


def encoder(saved: ModelBundle, method: str) -> Any:
  """Returns one encoder of a model as an ONNX model (a ModelProto).

  It takes "image", uint8 [B, H, W, 3], or "tokens", int32 [B, L], for any B, and returns
  "embedding", unit vectors, float32 [B, E]. It computes in float32, and normalises pixels, but does
  not resize images or tokenize texts.

  Args:
    saved: the model.
    method: "encode_image" or "encode_text".

  Raises:
    UserError: as for `write`.
  """
  try:
    import onnx
    from onnx import helper, numpy_helper  # noqa: F401 (attributes of `onnx` from here on)
  except ImportError as e:
    raise UserError(
      "--format=onnx needs the onnx library: pip install 'scaling-clip-jax[onnx]' or pip install "
      "onnx."
    ) from e
  with any_platform():
    model = abstract_model(_in_float32(saved.model))
    graphdef = split_state(model)[0]
    if method == "encode_image":
      height, width = model.image.image_size
      sizes, dtype = f"B, {height}, {width}, 3", "uint8"
    else:
      sizes, dtype = f"B, {model.text.context_length}", "int32"
    shape = export.symbolic_shape(sizes)
    entry = Tensor(ENTRIES[method], tuple(shape), np.dtype(dtype), tuple(shape))
    return _traced(onnx, graphdef, (saved.params, saved.stats), method, entry)


def _in_float32(config: Any) -> Any:
  """A copy of a model's config that computes in float32 everywhere."""
  config = copy.deepcopy(config)
  with config.unlocked():
    for spec in calls(config):
      if "dtype" in spec:
        spec.dtype = "float32"
  return config


def _traced(onnx, graphdef, arrays, method, entry):
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)

  def encode(arrays, x):
    return getattr(nnx.merge(graphdef, *arrays), method)(x)

  traced = jax.make_jaxpr(encode)(abstract, jax.ShapeDtypeStruct(entry.shape, entry.dtype))
  graph = Graph(onnx, entry.name)
  weights = [np.asarray(x) for x in jax.tree.leaves(arrays)]
  (result,) = translate(graph, traced.jaxpr, traced.consts, [*weights, entry])
  graph.add("Identity", [graph.whole(result)])
  graph.nodes[-1].output[0] = "embedding"

  def described(tensor, name):
    kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
    sizes = [size if isinstance(size, int) else "B" for size in tensor.shape]
    return onnx.helper.make_tensor_value_info(name, kind, sizes)

  read = {name for node in graph.nodes for name in node.input}
  proto = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      f"clip_jax_{method}",
      [described(entry, entry.name)],
      [described(result, "embedding")],
      [weight for weight in graph.weights if weight.name in read],
    ),
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    producer_name="clip_jax",
    ir_version=IR_VERSION,
  )
  if proto.ByteSize() > _LARGEST:
    raise UserError(
      f"The weights of {method} take {proto.ByteSize() / 2**30:.1f} GiB, and an ONNX file holds at "
      "most 2 GiB. Export with --format=stablehlo instead."
    )
  onnx.checker.check_model(proto)
  return proto
