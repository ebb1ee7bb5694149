"""A model as it lies somewhere: how it is made, its arrays, and what goes with it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax.config import build, call, function
from clip_jax.data.crops import Resize
from clip_jax.data.two_step import TwoStep
from clip_jax.errors import UserError
from clip_jax.interfaces import Tokenizer
from clip_jax.model import TwoTowers, split
from clip_jax.pretrained import names
from clip_jax.towers.sizes import transformer_size


@dataclasses.dataclass
class Saved:
  """What every format is read to, and written from.

  Attributes:
    model: a call of `TwoTowers`.
    params, stats: the model's arrays as `model.split` has them.
    scale, bias: what turns a product of unit vectors into a logit.
    preprocess, tokenizer: of the `Embedder`.
  """
  model: ConfigDict
  params: dict
  stats: dict
  scale: float
  bias: float
  preprocess: Resize | TwoStep
  tokenizer: Tokenizer


def read(model: ConfigDict, table: list[names.Name], arrays: dict[str, np.ndarray], where: str, *,
         ignored: tuple[str, ...] = (), preprocess: Resize | TwoStep,
         tokenizer: Tokenizer) -> Saved:
  """The model that `model` calls, filled from another library's arrays by a table of names.

  The logarithm of the scale has the path "log_scale" in a table, the bias "bias".

  Raises:
    UserError: arrays are missing, too many or of another shape.
  """
  _, params, stats = split(abstract(model))
  empty = lambda tree: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
  params, stats = empty(params), empty(stats)
  scalars = {"log_scale": np.zeros((), np.float32), "bias": np.zeros((), np.float32)}
  if "bias" not in {row.ours for row in table}:
    del scalars["bias"]
  names.read(table, {**flat(params), **flat(stats), **scalars}, arrays, where, ignored=ignored)
  return Saved(model, params, stats, math.exp(scalars["log_scale"]),
               float(scalars.get("bias", 0.0)), preprocess, tokenizer)


def written(saved: Saved, table: list[names.Name]) -> dict[str, np.ndarray]:
  """Another library's arrays of a model."""
  tree = {path: np.asarray(x) for path, x in {**flat(saved.params), **flat(saved.stats)}.items()}
  tree["log_scale"] = np.asarray(math.log(saved.scale), np.float32)
  if "bias" in {row.ours for row in table}:
    tree["bias"] = np.asarray(saved.bias, np.float32)
  return names.written(table, tree)


def abstract(model: ConfigDict) -> TwoTowers:
  """The model that is called, with shapes for arrays."""
  return jax.eval_shape(lambda key: build(model, rngs=nnx.Rngs(key)), jax.random.key(0))


def flat(tree: dict) -> dict[str, Any]:
  """The leaves of nested dicts by path."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {"/".join(str(key.key) for key in path): x for path, x in leaves}


def complete(spec: ConfigDict) -> ConfigDict:
  """A call with the defaults of arguments that came after it was written down; sizes as numbers."""
  spec = call(function(spec.fn), **{name: complete(x) if isinstance(x, ConfigDict) else x
                                    for name, x in spec.items() if name != "fn"})
  if "mlp" in spec:
    width, depth, mlp, heads = transformer_size(*(spec[name] for name in (
        "size", "width", "depth", "mlp", "heads")))
    with spec.unlocked():
      spec.width, spec.depth, spec.mlp, spec.heads = width, depth, mlp, heads
  return spec


def kind(spec: ConfigDict) -> str:
  """Name of the class or function that is called, without its module."""
  return spec.fn.partition(":")[2]


def demand(spec: ConfigDict, what: str, there: str, **wanted: Any) -> None:
  """Raises unless arguments of a call have the values that another library's model has.

  Args:
    what: the call is of, for the message; `there`, the name of the library's model.
    wanted: values by argument; a tuple holds alternatives.
  """
  for name, values in wanted.items():
    values = values if isinstance(values, tuple) else (values,)
    if spec[name] not in values:
      raise UserError(
          f"{there} has no counterpart of this model: {what}'s {name} is {spec[name]!r}, and there "
          f"it is {' or '.join(map(repr, values))}. {EXPORTABLE}")


EXPORTABLE = (
    "What can be exported: to open_clip, Vit in OpenAI's form (or SigLIP's, in the sizes that timm "
    "has), ClipResnet, and TextTransformer without mask_padding; to huggingface, Vit and "
    "TextTransformer both in OpenAI's form or both in SigLIP's; to big_vision, Vit and "
    "TextTransformer in its form; to stablehlo, every model.")


def load_json(path: Path) -> dict:
  """What a JSON file holds.

  Raises:
    UserError: it is cut off or otherwise no JSON.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}. Download it again.") from error


def save_json(path: Path, value: Any) -> None:
  """Writes an indented JSON file."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
